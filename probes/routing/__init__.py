"""Routers over adapters: trained, recorded, overridden, and held against the best single adapter."""
