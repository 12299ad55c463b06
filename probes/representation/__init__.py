"""What hidden states hold, in base and tuned model: probes, neurons, drift, and what reads them out."""
