"""Redis: the request streams, the ledger, the leases. Every state change is one script."""
