"""p2pfl: decentralised peer-to-peer federated training in JAX."""
