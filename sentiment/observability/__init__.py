"""What people and monitors see of running work: progress, Prometheus metrics, MLflow."""
