"""Ray: the cluster, training workers, and the driver that follows them. Modules here are imported one by one."""
