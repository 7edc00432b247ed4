"""Door `lerobot_grpc`: LeRobot's own `python -m lerobot.async_inference.robot_client` gets chunks from our server.

The service is that of lerobot/async_inference/policy_server.py of LeRobot 0.6.1; what differs, on purpose: a client
chooses among the checkpoints that are there, nothing is unpickled, every connection is a session of its own, and an
observation is never dropped because the joints have hardly moved. Messages and their checks are in `lerobot_messages`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import grpc
from lerobot.transport import services_pb2, services_pb2_grpc

from simplify_work.server.doors import Brain, taken
from simplify_work.server.doors.guests import (
    Guest,
    Refusals,
    UnknownCheckpointError,
    check_single,
    choose,
    listed,
)
from simplify_work.server.doors.lerobot_messages import (
    MAX_OBSERVATION,
    Instructions,
    pickled_actions,
    read_instructions,
    read_observation,
)
from simplify_work.server.doors.lerobot_robot import Robot
from simplify_work.wire.errors import (
    FeatureMismatch,
    RemoteError,
    RemoteInferenceError,
    ServerBusy,
    ServerStopped,
    Superseded,
    WireFormatError,
)

logger = logging.getLogger(__name__)

FPS = 30.0  # LeRobot's server takes it from its own options, too: a client does not tell its rate
OBS_QUEUE_TIMEOUT_S = 2.0
INFER_TIMEOUT_S = 60.0
MAX_ROBOTS = 16
MAX_MESSAGE = 4 * 2**20  # as LeRobot's client; it sends pieces of half that size

_IDLE_S = 30.0  # a client asks for actions again and again, so one that does not is gone
_UPLOAD_S = 10.0
_WATCH_EVERY_S = 1.0
_STRANGER_WAITS_S = 1.0  # LeRobot's client asks again at once after an error
_DETAILS = 2500  # bytes of a status, which travels in an HTTP/2 header of 8 KiB; beyond ASCII each becomes three there
_WORKERS = 2 * MAX_ROBOTS + 4  # a robot asks for actions and sends an observation at the same time

_CODES = {
    FeatureMismatch: grpc.StatusCode.INVALID_ARGUMENT,
    WireFormatError: grpc.StatusCode.INVALID_ARGUMENT,
    ServerBusy: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ServerStopped: grpc.StatusCode.UNAVAILABLE,
    RemoteInferenceError: grpc.StatusCode.INTERNAL,
}
_State = services_pb2.TransferState


class LeRobotGrpcDoor(services_pb2_grpc.AsyncInferenceServicer):
    """A gRPC server as LeRobot's policy server.

    Attributes:
        name: `lerobot_grpc`.
        endpoint: Where it answers.

    Args:
        brains: The checkpoints.
        host: To listen on.
        port: 0 chooses a free one.
        fps: Actions a second, for their timestamps (which LeRobot's client only logs).
        obs_queue_timeout_s: How long a request for actions waits for an observation.
    """

    name = "lerobot_grpc"

    def __init__(
        self,
        brains: Sequence[Brain],
        host: str,
        port: int,
        fps: float = FPS,
        obs_queue_timeout_s: float = OBS_QUEUE_TIMEOUT_S,
    ) -> None:
        self._brains = tuple(brains)
        self._host, self._port = host, port
        self._step_s = 1 / fps
        self._obs_queue_timeout_s = obs_queue_timeout_s
        self._robots: dict[str, Robot] = {}
        self._uploads: dict[grpc.ServicerContext, float] = {}
        self._refusals = Refusals(logger)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server: grpc.Server | None = None
        self.endpoint = f"{host}:{port}"

    def start(self) -> None:
        """Take the port and begin to answer.

        Raises:
            UserError: If the port cannot be had.
        """
        self._pool = ThreadPoolExecutor(_WORKERS, "door-lerobot_grpc")
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.so_reuseport", 0),
            ("grpc.compression_enabled_algorithms_bitset", 1),  # none: a small message stays small
        ]
        server = grpc.server(self._pool, options=options, maximum_concurrent_rpcs=_WORKERS)
        services_pb2_grpc.add_AsyncInferenceServicer_to_server(self, server)
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            port = server.add_insecure_port(f"{host}:{self._port}")
        except RuntimeError as error:
            raise taken(self.name, self._host, self._port, error) from error
        self.endpoint = f"{host}:{port}"
        self._server = server
        server.start()
        self._watcher = threading.Thread(target=self._watch, name="door-lerobot_grpc-watch", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Close the port and end all sessions."""
        if self._server is None:
            return
        self._stopping.set()
        server, self._server = self._server, None
        stopped = server.stop(grace=None)
        self._end_all()
        stopped.wait()
        self._pool.shutdown()
        self._end_all()  # those whose instructions were being read
        self._watcher.join()

    # --- the service; the names are LeRobot's ---

    def Ready(self, request: services_pb2.Empty, context: grpc.ServicerContext) -> services_pb2.Empty:  # noqa: N802
        """A client is there; what it did on this connection before is over."""
        robot = self._robots.get(context.peer())
        if robot is not None and robot.present:
            text = "another robot client of the same process uses this connection; run each in a process of its own."
            self._refuse(context, grpc.StatusCode.ALREADY_EXISTS, text)
        self._end(context.peer(), "it begins anew")
        return services_pb2.Empty()

    def SendPolicyInstructions(  # noqa: N802
        self, request: services_pb2.PolicySetup, context: grpc.ServicerContext
    ) -> services_pb2.Empty:
        """Choose the checkpoint, and check that the robot has what it wants."""
        with self._told(context):
            instructions = read_instructions(request.data)
            brain = self._chosen(instructions)
            check_single(brain.served)
            instructions.check(brain.served)
            self._end(context.peer(), "it has new instructions")
            with self._lock:
                if len(self._robots) >= MAX_ROBOTS:
                    raise ServerBusy(f"the door has its {MAX_ROBOTS} robots; wait for one to end.")
                guest = Guest(brain, f"robot client {context.peer()}")
                self._robots[context.peer()] = Robot(guest, instructions)
        count = min(instructions.actions_per_chunk, brain.served.chunk_size)
        logger.info(
            "%s: checkpoint %s, %d of %d actions of a chunk (policy_device=%.80r is not used: the policy is where the "
            "server put it)",
            guest.client,
            brain.path,
            count,
            brain.served.chunk_size,
            instructions.device,
        )
        return services_pb2.Empty()

    def SendObservations(  # noqa: N802
        self, request_iterator: Iterator[services_pb2.Observation], context: grpc.ServicerContext
    ) -> services_pb2.Empty:
        """Keep an observation until the client asks for actions; a newer one takes its place."""
        robot = self._known(context)
        with self._told(context), robot.sending():
            self._uploads[context] = time.monotonic() + _UPLOAD_S
            try:
                data = _joined(request_iterator)
            finally:
                self._uploads.pop(context, None)
            observed = read_observation(data)
            robot.put(observed, robot.instructions.frame(observed.raw, robot.guest.brain.served))
        return services_pb2.Empty()

    def GetActions(self, request: services_pb2.Empty, context: grpc.ServicerContext) -> services_pb2.Actions:  # noqa: N802
        """The chunk for the newest observation; empty if none comes in time."""
        robot = self._known(context)
        try:
            return self._actions(robot, context)
        finally:
            # A client does not give up by itself, and one that connects anew has another peer.
            if not context.is_active():
                self._end(context.peer(), "its client is gone", robot)

    # --- robots ---

    def _actions(self, robot: Robot, context: grpc.ServicerContext) -> services_pb2.Actions:
        with self._told(context), robot.asking(context):
            waiting = robot.take(self._obs_queue_timeout_s)
            if waiting is None:
                return services_pb2.Actions()
            observed, frame = waiting
            try:
                inference = robot.guest.infer(frame, observed.task, INFER_TIMEOUT_S)
            except Superseded:
                return services_pb2.Actions()
            except Exception:
                robot.failed(observed)
                raise
            actions = inference.actions[: robot.instructions.actions_per_chunk]
            return services_pb2.Actions(data=pickled_actions(actions, observed, self._step_s))

    def _chosen(self, instructions: Instructions) -> Brain:
        brain = choose(self._brains, instructions.checkpoint)
        kind = brain.served.policy_type
        if instructions.policy_type != kind:
            raise FeatureMismatch(
                f"checkpoint {brain.path} is a policy of type '{kind}', the client says "
                f"policy_type={instructions.policy_type!r:.80}; served: {listed(self._brains)}."
            )
        return brain

    def _known(self, context: grpc.ServicerContext) -> Robot:
        robot = self._robots.get(context.peer())
        if robot is None:
            self._stopping.wait(_STRANGER_WAITS_S)
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                "no policy instructions came over this connection: it was lost, or the server was started anew; start the "
                "robot client again.",
            )
        return robot

    def _end(self, peer: str, why: str, which: Robot | None = None) -> None:
        """End the robot of a connection, if it is `which` (None: any)."""
        with self._lock:
            robot = self._robots.get(peer)
            if robot is None or which not in (None, robot):
                return
            del self._robots[peer]
        logger.info("%s ends: %s", robot.guest.client, why)
        robot.end()

    def _end_all(self) -> None:
        for peer in list(self._robots):
            self._end(peer, "the server stops")

    def _watch(self) -> None:
        """End robots that are gone and observations that do not get to their end."""
        while not self._stopping.wait(_WATCH_EVERY_S):
            for peer, robot in list(self._robots.items()):
                if robot.silent_s > _IDLE_S:
                    self._end(peer, f"silent for {_IDLE_S:g} s", robot)
            now = time.monotonic()
            for context, until in list(self._uploads.items()):
                if now > until:
                    context.cancel()

    @contextlib.contextmanager
    def _told(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Make an error the status of the call: LeRobot's client writes its text into its log."""
        try:
            yield
        except grpc.RpcError:  # the client is gone
            raise
        except UnknownCheckpointError as error:
            self._refuse(context, grpc.StatusCode.NOT_FOUND, str(error))
        except RemoteError as error:
            codes = (code for kind, code in _CODES.items() if isinstance(error, kind))
            self._refuse(context, next(codes, grpc.StatusCode.ABORTED), str(error))
        except Exception as error:
            logger.exception("a message of robot client %s could not be handled", context.peer())
            text = f"the server failed ({type(error).__name__}); its log says where."
            self._refuse(context, grpc.StatusCode.INTERNAL, text)

    def _refuse(self, context: grpc.ServicerContext, code: grpc.StatusCode, text: str) -> NoReturn:
        self._refusals.note(f"robot client {context.peer()}: {text}")
        context.abort(code, text.encode(errors="replace")[:_DETAILS].decode(errors="ignore"))


def _joined(pieces: Iterator[services_pb2.Observation]) -> bytearray:
    """The bytes of one observation, as lerobot/transport/utils.py cuts them: pieces up to one that is the END.

    Raises:
        WireFormatError: If there is no END, or more than MAX_OBSERVATION bytes.
    """
    data = bytearray()
    for piece in pieces:
        if piece.transfer_state == _State.TRANSFER_BEGIN:
            data.clear()
        elif piece.transfer_state not in (_State.TRANSFER_MIDDLE, _State.TRANSFER_END):
            raise WireFormatError(f"a piece of an observation has the unknown state {piece.transfer_state}.")
        if len(data) + len(piece.data) > MAX_OBSERVATION:
            raise WireFormatError(f"the observation has more than {MAX_OBSERVATION} bytes.")
        data += piece.data
        if piece.transfer_state == _State.TRANSFER_END:
            return data
    raise WireFormatError("the observation ends early: its last piece did not come.")
