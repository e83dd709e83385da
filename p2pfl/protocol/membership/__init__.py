"""Membership: SWIM with Lifeguard, without a socket or a clock; `Membership.handle(event, now)` returns effects."""
