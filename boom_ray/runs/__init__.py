"""A run on storage: its layout, identity, heartbeat, versions, ancestry and status."""
