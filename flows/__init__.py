"""Who runs which stage when: Prefect flows and the command line."""
