"""What nodes say to each other, without a socket or a clock: `Peer.handle(event, now)` returns effects."""
