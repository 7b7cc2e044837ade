"""PID 1 of the serving container: knows SageMaker's environment, paths and signals, nothing of models."""
