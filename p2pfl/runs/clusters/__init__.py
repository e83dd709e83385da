"""Files by which a cluster starts the nodes of a federation: systemd, Slurm, Kubernetes, compose."""
