"""Ray Serve's request router for a model's replicas: it asks `ranked` and hands the answer to Ray.

Ray itself finds the session (the header X-Session-ID), counts queues, and goes on to the next replica if one
is full or has died. Runs in Ray's HTTP proxy.
"""

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from smollm3.server.replicas.routing import ranked


class SessionRouter(RequestRouter):
    """Sends a session's requests to the replica that holds its past."""

    # A busy machine answers late; a replica must not lose its sessions for that.
    queue_len_response_deadline_s = 1.0
    max_queue_len_response_deadline_s = 5.0

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas, each a rank of its own."""
        session = ""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # between rounds, not between ranks
            session = pending_request.metadata.session_id
            # Ray files requests by a header of theirs, and nothing but its own routers takes them out again.
            model_id = pending_request.metadata.multiplexed_model_id
            getattr(self, "_pending_requests_by_model_id", {}).pop(model_id, None)
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        lengths = {
            name: self.replica_queue_len_cache.get(replica.replica_id) for name, replica in by_name.items()
        }
        return [[by_name[name]] for name in ranked(session, lengths)]
