"""Work shared out over the processes of a Ray cluster, each of which holds the whole models."""
