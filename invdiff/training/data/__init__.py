"""Training images: where they come from, how they are decoded and cached, and which crops are drawn."""
