"""The lab's cameras: pictures and depth of the world, with exact pinhole intrinsics.

All of it belongs to the thread that made it (OpenGL contexts do). Nothing here knows how frames are sent.
"""

from __future__ import annotations

import math

import numpy as np

from lerobot_ext.errors import UserError
from lerobot_ext.virtual.link import CameraInfo, Intrinsics, TableMark
from lerobot_ext.virtual.world import World, load_mujoco

SERIAL = "virt0001"
BASELINE_M = 0.015  # a D435's colour sensor sits 15 mm to the left of its depth origin
DEPTH_UNIT_M = 0.001  # a D435's; a D405 counts 0.0001
MAX_DEPTH_M = 3.0  # beyond it a D435 sees nothing, which is written as 0
FOCAL_PER_WIDTH = {"side": 0.727, "side_depth": 0.527}  # fx / width: 69 and 87 degrees, as the D435's


def camera_info(width: int, height: int, fps: int, depth_unit_m: float = DEPTH_UNIT_M) -> CameraInfo:
    """What the side camera tells about itself at that size, counting depth in that unit."""
    color, depth = (
        Intrinsics(width, height, width * focal, width * focal, (width - 1) / 2, (height - 1) / 2)
        for focal in FOCAL_PER_WIDTH.values()
    )
    return CameraInfo(
        serial=SERIAL,
        name="Virtual D435",
        firmware="5.16.0.1",
        fps=fps,
        depth_units_m=depth_unit_m,
        color=color,
        depth=depth,
        depth_to_color_m=(BASELINE_M, 0.0, 0.0),
    )


class Cameras:
    """Renders the cameras of `world` at one size; depth is counted in units of `depth_unit_m` metres."""

    def __init__(self, world: World, width: int, height: int, depth_unit_m: float = DEPTH_UNIT_M) -> None:
        """Open an OpenGL context in this thread.

        Raises:
            UserError: If there is no OpenGL to render with.
        """
        mujoco = self._mj = load_mujoco()
        self._world, self._width, self._height = world, width, height
        self._depth_unit_m = depth_unit_m
        model = world.model
        for name, focal in FOCAL_PER_WIDTH.items():
            model.camera(name).fovy = math.degrees(2 * math.atan(height / 2 / (width * focal)))
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        try:
            self._gl = mujoco.GLContext(width, height)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
            self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
            from OpenGL import GL  # MuJoCo's own; which one it is, its GLContext has decided

            self._gl_calls = GL
        except Exception as error:  # every OpenGL backend fails in its own way
            raise UserError(
                f"the virtual lab cannot render ({type(error).__name__}: {error}); "
                "without a display it needs OSMesa: `apt install libosmesa6`."
            ) from error
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._options = mujoco.MjvOption()
        self._pictures = mujoco.MjvScene(model, maxgeom=200)
        self._distances = mujoco.MjvScene(model, maxgeom=200)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._pictures.flags[flag] = 0
        for flag in (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR):
            self._distances.flags[flag] = 1  # flat colours: depth needs no light

    def color(self, camera: str) -> np.ndarray:
        """Picture of `camera` ("side" or "wrist"), uint8 (H, W, 3) RGB."""
        pixels = np.empty((self._height, self._width, 3), np.uint8)
        self._render(camera, self._pictures)
        self._mj.mjr_readPixels(pixels, None, self._rect, self._context)
        return np.ascontiguousarray(pixels[::-1])  # OpenGL's first row is the lowest

    def depth(self) -> np.ndarray:
        """Depth along the axis of "side_depth", uint16 (H, W) in the device's units; 0 beyond 3 m."""
        raw = self.depth_m()
        too_far = raw > MAX_DEPTH_M
        raw *= np.float32(1 / self._depth_unit_m)
        raw += np.float32(0.5)
        raw[too_far] = 0
        return raw.astype(np.uint16)

    def depth_m(self, camera: str = "side_depth") -> np.ndarray:
        """The truth before rounding: metres along the axis of `camera`, float32 (H, W), also beyond 3 m."""
        buffer = np.empty((self._height, self._width), np.float32)
        self._gl_calls.glColorMask(False, False, False, False)  # nobody looks at the colours of this one
        self._render(camera, self._distances)
        self._gl_calls.glColorMask(True, True, True, True)
        self._mj.mjr_readPixels(None, buffer, self._rect, self._context)
        model = self._world.model
        near, far = model.stat.extent * model.vis.map.znear, model.stat.extent * model.vis.map.zfar
        # 1 at the near plane, 0 at the far one, hyperbolic in between
        buffer += np.float32(near / (far - near))
        return np.float32(far * near / (far - near)) / buffer[::-1]

    def _render(self, camera: str, scene) -> None:
        mujoco, world = self._mj, self._world
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = world.model.camera(camera).id
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(world.model, world.data, self._options, None, view, everything, scene)
        mujoco.mjr_render(self._rect, scene, self._context)

    def project(self, camera: str, point: np.ndarray) -> tuple[float, float, float]:
        """Where `point` (world, m) appears: pixel column, pixel row (0 is the first pixel's centre), depth in m."""
        model, data = self._world.model, self._world.data
        index = model.camera(camera).id
        x, y, z = data.cam_xmat[index].reshape(3, 3).T @ (np.asarray(point) - data.cam_xpos[index])
        width, height = self._width, self._height
        focal = height / 2 / math.tan(math.radians(model.cam_fovy[index]) / 2)
        # MuJoCo's cameras look along -z with y up
        return (width - 1) / 2 + focal * x / -z, (height - 1) / 2 - focal * y / -z, -z

    def table_mark(self) -> TableMark:
        """The table's centre in the colour image, with the depth of the table at the centre of that pixel."""
        model, data = self._world.model, self._world.data
        point = data.site("table_centre").xpos
        column, row = (round(value) for value in self.project("side", point)[:2])
        index = model.camera("side").id
        focal = self._height / 2 / math.tan(math.radians(model.cam_fovy[index]) / 2)
        ray = np.array([column - (self._width - 1) / 2, (self._height - 1) / 2 - row, -focal])
        drop = (data.cam_xmat[index].reshape(3, 3) @ (ray / focal))[2]  # metres downwards per metre of depth
        return TableMark(column, row, float((point[2] - data.cam_xpos[index][2]) / drop))

    def close(self) -> None:
        """Give the OpenGL context back."""
        self._context.free()
        self._gl.free()
