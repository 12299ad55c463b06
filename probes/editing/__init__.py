"""Where in the weights facts are best edited."""
