"""The circuit track of the MIB benchmark: its metrics, on tasks that are generated here."""
