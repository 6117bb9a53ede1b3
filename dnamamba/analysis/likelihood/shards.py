"""A genome's likelihoods by several jobs: each computes some contigs, and a last one writes the files of all.

Contigs are what jobs share out: a contig is computed as by one job alone, to the bit. Its values lie in PREFIX.parts
until then, each under a name that says it is whole; what lies there is not computed again, by whichever job.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from dnamamba.analysis.likelihood.compute import LikelihoodSums
from dnamamba.analysis.likelihood.contig_tracks import ContigTracks
from dnamamba.formats.files import read_json
from dnamamba.inference.shards import Parts
from dnamamba.outputs import whole_file, write_atomically


class KeptContigs(Parts):
    """The values of contigs in PREFIX.parts."""

    subject = "region"

    def holds(self, name: str) -> bool:
        """Raises `InputError` where it holds a contig's values of another computation."""
        said = self._path(name, ".json")
        if not said.is_file():
            return False
        self.refuse_others(said, read_json(said)["made_by"])
        return True

    def keep(self, tracks: ContigTracks, sums: LikelihoodSums) -> None:
        """Values first, then what says that they are whole."""
        self.folder.mkdir(exist_ok=True)
        with whole_file(self._path(tracks.name, ".f32"), overwrite=True) as partial:
            tracks.save(partial)
        masking = [part.tolist() for part in sums.masking]
        said = {"contig": tracks.name, "made_by": self.made_by, "sums": sums.added, "masking": masking}
        write_atomically(self._path(tracks.name, ".json"), json.dumps(said) + "\n")

    def restore(self, tracks: ContigTracks, sums: LikelihoodSums) -> None:
        """Into empty tracks, and added to the sums as they were when they were computed."""
        tracks.load(self._path(tracks.name, ".f32"))
        said = read_json(self._path(tracks.name, ".json"))
        for strand, nats, bases in said["sums"]:
            sums.add_sum(strand, nats, bases)
        sums.masking += [np.array(part) for part in said["masking"]]

    def _path(self, name: str, suffix: str) -> Path:
        """Contigs may be named as no file can be."""
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}{suffix}"
