"""The protocol between nodes, without a socket or a clock: `Peer.handle(event, now)` returns effects.

A driver owns a `Peer`, a `Membership`, a network and a clock, and whatever computes. It keeps to this:

 1. One event at a time, in one thread; the effects of an event in the order in which they are returned, and all of them
    before the next event. What an effect brings about at once is the next event, not a call inside.
    (test_driver_contract: test_what_an_effect_brings_about_comes_after_all_effects)
 2. `now` is in seconds and never goes back; no other node's clock is ever part of it. The driver says `Tick` while
    nothing happens, more often than `timing.silence / 2`: a longer gap between two is taken for this node having stood
    still, and its waits are prolonged by that. (transcripts/peer/freeze)
 3. `Start` comes first, once all is compiled and the sockets listen; from then on the node exists for the others.
    (transcripts/peer/start)
 4. `Send`: the message goes out with `envelope.payload` behind it as it is. It may be lost, but what arrives on a link
    arrives in the order in which it was sent. What was sent to or by an earlier life may still arrive: the envelope
    says so, and the peer drops it. The peer may send a payload again: nobody changes it. Whoever has the bytes of a
    `Model` puts their digest into it; the peer leaves it empty.
    (test_codec; transcripts/peer/stale, lost-offer)
 5. `Received` is for what the codec has found well-formed; `Refused` for what is so but whose payload holds a number
    that is not finite. All else is dropped and counted by the driver: no peer sees it. The payload of a message stays
    as it is until an `Advance` or an `Adopt` has brought it. A driver whose messages take long may say `Progressed`
    while one gets on, before it is whole. (test_codec; test_transport; transcripts/peer/nonfinite, progress)
 6. `Advance` goes to whoever computes, who carries out one after another and need not be waited for. It does in this
    order: mix `booked` and record the round `finished`; if `members` is not None, enter the epoch of these members as
    life `life`; train round `next`, with shares for `speak`. There is never a second one before the first is answered.
    `next` may be a round that was trained before: then it is trained again, as another life. (test_peer_stories)
 7. Each `Advance` has one answer: `Trained` when round `next` is trained; `Finished` when `next` is None; or
    `Leave(idle=True)` when it can't be trained or is not to be, and then no `Trained` follows. If the last `Advance`,
    which comes then, fails too, the answer is `Finished` all the same. A node that dies there answers nothing.
    (transcripts/peer/fails, leave-in-training)
 8. `Adopt` goes to the same computing, in order: it comes right before the first `Advance` of a node that joins, and
    has no answer. Its payload is the neighbour's parameters after the local steps of `round`.
    (transcripts/peer/join, finished)
 9. On disk before it is sent: that a round pushes to `speak` is written before the round is trained, since whoever gets
    the push may record it when this node never records the round; and the record of a finished round, with the
    checkpoint that is due after it, before the next round is trained. Hence nothing of a round is sent before the round
    before it is written. Lines are in the file, which outlives the process; only checkpoints are synced to the disk.
    What can't be written (a full disk) is dropped, and the run says that its trace is not whole: what nobody can lose
    by it is training, and what is lost is the replay and the ledger, which are made from the trace.
    (test_driver_contract: test_what_is_sent_was_written_before)
10. Nothing else is kept: no offer, no receipt, no booking that is not mixed. A process that comes back, with a
    checkpoint or without, is a new life of the node, greater than every earlier one, with `Facts.kept_round` of the
    checkpoint; what an earlier life left open is void at the other end, and what only one end has booked is residue,
    counted from the records. (test_exchange: test_a_crash_leaves_one_exchange_at_most_that_the_ends_do_not_agree_on;
    test_ledger; transcripts/peer/keep, stale)
11. Whatever changes in the membership's table comes as `Members`, the whole of it as `view` makes it, this node among
    them; when the membership says that this node is accused, with the life that is held for dead. The driver tells the
    membership `Peer.told` when that has changed, which is how others know where it is. While `Peer.waits`, the node
    is in no round: a planned partition is then up to the others' rounds. (test_virtual_world; transcripts/peer/waiting)
12. `Reborn`: tell the membership the new life. It comes before the `Advance` that enters an epoch with that life, or
    before the first. (transcripts/peer/reborn)
13. `Leave(idle=False)` may come at any time: a person asks, or a newer process of this node runs elsewhere. A round in
    training is trained to its end, but not sent. (transcripts/peer/leave, leave-in-training;
    test_live: test_two_nodes_by_hand_with_rows_of_their_own_until_they_are_asked_to_stop)
14. `Done` comes last, behind the good-byes; what comes in after it is ignored. The driver tells the membership the last
    round and that the node leaves, gives the last words time to go out, and closes. (test_peer_stages;
    test_virtual_world: test_who_leaves_is_no_death)
15. `Admitted` comes from whoever vouches for the nodes of the federation (a file that its members have signed; an
    experiment's plan is in `Facts.nodes` from the start), never from a peer: first to the peer and to what takes in
    connections, then to the membership, so that whoever is told of a newcomer can be heard by who has told it. At
    different nodes it may come at different times. (transcripts/peer/admitted; test_admitted)
16. `Note` and `Drop` are for the record: nobody answers them, and no message of a peer raises an error in training.
    (transcripts/peer/stranger)
"""
