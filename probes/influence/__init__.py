"""Which training rows made a behaviour: gradients, dictionary codes, demonstrations, and training without them."""
