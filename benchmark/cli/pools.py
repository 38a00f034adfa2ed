"""The pool that a command works on: where it is, how it is opened, and when an embedded one is generated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmark.cli.options import Config
from benchmark.cli.values import as_count, as_flag, as_path, as_signals_dir
from benchmark.pool.pool import Pool
from benchmark.pool.shards_note import has_tars
from benchmark.runtime.errors import UserError
from benchmark.runtime.paths import is_remote, is_writable
from benchmark.runtime.storage import has_file
from benchmark.scales import SCALES, Scale, get_scale


@dataclass(frozen=True)
class PoolOptions:
    """Which pool a command works on, for which scale, and how it is read."""

    scale: Scale
    dir: Path
    seed: int = 0  # generation seed, of an embedded pool
    strict: bool = True
    signals_dir: Path | None = None  # None: in the pool's own folder

    @classmethod
    def read(cls, config: Config) -> PoolOptions:
        """Check the options of the pool; raises UserError."""
        scale = get_scale(str(config["scale"]))
        seed = as_count(config["pool_seed"], "pool_seed")
        pool_dir = as_path(config["pool_dir"], "pool_dir") or default_pool_dir(scale, seed)
        strict = as_flag(config["strict"], "strict")
        return cls(scale, pool_dir, seed, strict, as_signals_dir(config.get("signals_dir")))

    def open(self) -> Pool:
        """Open the pool; raises NotFoundError where there is none."""
        return Pool(self.dir, strict=self.strict, signals_dir=self.signals_dir)

    def open_or_generate(self) -> Pool:
        """Open the pool; that of an embedded scale is generated first if it does not exist yet.

        It is generated in the scale's own folder only: another one that was named may be mistyped and hold other
        things, so there a generation only continues that `winnow pool build` began. A pool that is remote or read-only
        is used as it is. Raises NotFoundError where there is no pool.
        """
        if is_remote(self.dir) or (self.dir.is_dir() and not is_writable(self.dir)):
            if has_file(self.dir / "building.json") and not is_embedded_pool(self.dir):
                raise UserError(
                    f"{self.dir} is half generated and cannot be written to; finish it with `winnow pool build` first",
                    code="pool-half-drawn",
                )
            return self.open()
        is_generated = any((self.dir / name).exists() for name in ("pool.json", "building.json"))
        is_other = any((self.dir / "metadata").glob("*.parquet")) or has_tars(self.dir)
        is_default = self.dir.resolve() == default_pool_dir(self.scale, self.seed).resolve()
        if self.scale.is_embedded and (is_generated or (is_default and not is_other)):
            build_embedded_pool(SCALES[self.scale.pool_scale], self.dir, self.seed, None)
        return self.open()


def is_embedded_pool(pool_dir: Path) -> bool:
    """Tell whether a folder is an embedded pool that was generated to its end."""
    return has_file(pool_dir / "pool.json")


def default_pool_dir(scale: Scale, pool_seed: int) -> Path:
    """Return where a scale's pool is where `pool_dir` is not given: `pools/<scale>`, or `pools/<scale>-<pool_seed>`."""
    name = scale.pool_scale
    return Path("pools") / (name if pool_seed == 0 else f"{name}-{pool_seed}")


def build_embedded_pool(scale: Scale, pool_dir: Path, pool_seed: int, workers: int | None) -> None:
    """Generate the embedded pool of a scale, or say that it is up to date."""
    from benchmark.embedded.pool import build_pool

    if not scale.is_embedded:
        raise UserError(
            f"scale {scale.name!r} has no embedded pool; give pool_dir= of a pool on disk", code="no-embedded-pool"
        )
    if is_remote(pool_dir):
        raise UserError(
            f"an embedded pool is generated in a local folder, not in {pool_dir}; copy it there afterwards",
            code="option-value",
        )
    build_pool(pool_dir, scale, pool_seed, workers)
