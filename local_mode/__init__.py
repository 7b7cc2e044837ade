"""Running the endpoint without SageMaker: the embedded demo model and, beside it, local tools."""
