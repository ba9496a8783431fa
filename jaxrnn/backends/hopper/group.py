"""A group of clusters that share the units of one layer: what it asks of the machine.

Within a cluster all is as in `jaxrnn.backends.hopper.device`; what goes from one cluster to another
goes through global memory, see `jaxrnn.backends.hopper.far`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrnn.backends.hopper import far
from jaxrnn.backends.hopper.device import Device, Memory, slot_of


class Through:
    """The memory that a group exchanges through: one more result of the kernel, of no use after."""

    tiles: Any
    exchanged: Any
    """A reference to it, while the kernel is written."""

    def launch(
        self, body: Any, results: Any, scratch: dict[str, Any], groups: int, name: str
    ) -> Any:
        """As `Device.launch`."""
        of: Memory = scratch.pop("exchanged")
        kind: Any = self
        shape = jax.ShapeDtypeStruct((groups, *of.shape), of.dtype)

        def inside(*refs: Any, **own: Any) -> None:
            *given, self.exchanged = refs
            kind.enter(groups, own)
            body(*given, **own)

        run: Any = super().launch(  # pyright: ignore
            inside, (*results, shape), scratch | kind.more(), groups, name
        )
        return lambda *operands: run(*operands)[:-1]

    def slot(self, s: Any) -> int:
        """Nobody else writes h into shared memory."""
        del s
        return 0

    def announce(self, barriers: Any, s: Any) -> None:
        """Nobody sends parts of dh."""
        del barriers, s


class Group(Through, Device):
    """A Hopper GPU, and several clusters."""

    def more(self) -> dict[str, Any]:
        """Shared memory beside that of the loops."""
        return dict(ticket=(*far.TICKET, None))

    def enter(self, groups: int, own: dict[str, Any]) -> None:
        """Find out which block this is."""
        t = self.tiles
        # Zeros at each launch: Pallas makes them in the program, and hands them in and out.
        counters = pl.get_global(plgpu.SemaphoreType.REGULAR(((1 + groups * t.C) * far.LINE,)))
        drawn = far.draw(own.pop("ticket"), counters.at[pl.ds(0, 1)])
        self.group, self.at = lax.div(drawn, jnp.int32(t.K)), lax.rem(drawn, jnp.int32(t.K))
        place = (1 + self.group * t.C + self.rank) * far.LINE
        self.counter = counters.at[pl.ds(place, 1)]

    def places(self) -> tuple[Any, Any]:  # noqa: D102
        return self.at * self.tiles.C + self.rank, self.group

    @property
    def along(self) -> Any:  # noqa: D102
        return self.at

    def mine(self, s: Any) -> Any:
        """Where message `s` is exchanged by the blocks that this one exchanges with."""
        return self.exchanged.at[self.group, slot_of(s), self.rank]

    def spread(self, hs: Any, barriers: Any, s: Any) -> None:  # noqa: D102
        del barriers
        t = self.tiles
        size = t.parts * t.U * t.L * t.itemsize
        source, target = hs.at[0, self.at], self.mine(s).at[self.at]
        far.put(source, target, bytes_each=size, transforms=t.transforms)
        far.signal(self.counter)

    def gather(self, hs: Any, barriers: Any, s: Any) -> None:  # noqa: D102
        del barriers
        t = self.tiles
        far.wait(self.counter, (s + 1) * t.K)
        far.get(self.mine(s), hs.at[0], t.K * t.parts * t.U * t.L * t.itemsize, t.transforms)
        plgpu.commit_smem()  # read next by the tensor cores, which are of the async proxy

    def nothing(self, inbox: Any, barriers: Any) -> None:  # noqa: D102
        del inbox, barriers
        t = self.tiles
        far.clear(self.mine(jnp.int32(0)).at[self.at], t.K * t.U * t.L * 4)

    def scatter(self, sums: Any, inbox: Any, barriers: Any, s: Any, first: int, count: int) -> None:  # noqa: D102
        del inbox, barriers
        t = self.tiles
        size = t.U * t.L * 4
        far.put(
            *(sums, self.mine(s).at[0, self.at]),
            bytes_each=size,
            stride=t.K * size,
            first=first,
            count=count,
        )

    def scattered(self) -> None:  # noqa: D102
        far.signal(self.counter)

    def total(self, inbox: Any, barriers: Any, s: Any, scratch: Any) -> jax.Array:  # noqa: D102
        del inbox, barriers
        t = self.tiles
        far.wait(self.counter, s * t.K)
        far.add(self.mine(s).at[self.at], scratch, t.U * t.L, t.K)
        plgpu.commit_smem()
        return self.load(scratch, turn=t.rows_first)
