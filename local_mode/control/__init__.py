"""The control plane: resources on disk, and the SageMaker API's protocol over them. Runs no container itself."""
