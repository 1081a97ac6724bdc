"""`python3 build.py`: a bundle's jobs, on the device that it was carried to.

In a bundle this file is build.py, with the agent beside it. Standard library only, Python 3.6, nothing of trtrecipe.
Around it lie

    bundle.json       what the bundle is for, its jobs in their order, and the digest of everything else
    files/<sha256>    inputs of the jobs

and where --output says, which is here, it makes

    work/             the agent's cache: what was finished is not done again
    result/           result.json, files/<sha256>: what the jobs gave; the same as result.tar.gz

A job is a request of the agent's `run`. An input is a digest, or {"job": id, "output": role} of an earlier job. Where
it has "unless": {"job": id, "reason": word}, it is done only if that other one failed with that reason, whose failure
then counts for nothing. Left to be filled in here: what the device is, its memory, where its trtexec is, and the key.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tarfile
from typing import TYPE_CHECKING, Any, Dict, List, Optional

Json = Dict[str, Any]

HERE = os.path.dirname(os.path.abspath(__file__))
LONGEST = 32 << 20


class Refused(Exception):
    """Nothing was run: why, in a sentence."""


def content_digest(value: Json) -> str:
    """Of everything in a JSON object but its "sha256"."""
    rest = {name: each for name, each in value.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def read_bundle() -> Json:
    try:
        with open(os.path.join(HERE, "bundle.json"), "rb") as source:
            bundle = json.loads(source.read(LONGEST).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise Refused("bundle.json cannot be read ({}): bring the bundle over again".format(error)) from error
    if not isinstance(bundle, dict) or bundle.get("sha256") != content_digest(bundle):
        raise Refused("bundle.json is damaged: bring the bundle over again")
    return bundle


def check_file(name: str, digest: str, size: int) -> None:
    path = os.path.join(HERE, name)
    found, count = hashlib.sha256(), 0
    try:
        with open(path, "rb") as source:
            for block in iter(lambda: source.read(1 << 20), b""):
                found.update(block)
                count += len(block)
    except OSError as error:
        raise Refused("{} cannot be read ({}): bring the bundle over again".format(path, error.strerror)) from error
    if count != size or found.hexdigest() != digest:
        raise Refused("{} is damaged: bring the bundle over again".format(path))


def load_agent(bundle: Json) -> Any:
    """The agent beside this file, once it is known to be whole."""
    for name, entry in sorted(bundle["programs"].items()):
        check_file(name, entry["sha256"], entry["size"])
    sys.dont_write_bytecode = True  # the bundle may lie where nothing can be written
    sys.path.insert(0, HERE)
    import agent  # type: ignore[import-not-found]  # it lies there, not here

    return agent


if TYPE_CHECKING:
    from trtrecipe.device import agent


def tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def refuse_other_device(bundle: Json, root: str) -> None:
    """Raise Refused unless this is a device of the profile, with a TensorRT of the release. Where a container hides the
    device tree, there is nothing to hold the profile against."""
    compatible = [part for part in (agent.text_of(root, "proc/device-tree/compatible") or "").split("\0") if part]
    if compatible and not any(module in entry for module in bundle["modules"] for entry in compatible):
        model = agent.first_line(root, "proc/device-tree/model") or "something else"
        wanted = "{} ({})".format(bundle["profile"], ", ".join(bundle["modules"]))
        raise Refused("this device is {} ({}); the bundle is for {}".format(model, ", ".join(compatible), wanted))
    found = agent.tensorrt(root, agent.installed(root))
    if found is None or not (found + ".").startswith(bundle["tensorrt"] + "."):
        has = "has TensorRT {}".format(found) if found else "shows no TensorRT"
        raise Refused("this device {}; the bundle is for TensorRT {}".format(has, bundle["tensorrt"]))


class Bench:
    """The jobs on this device. `given` is put into every request."""

    def __init__(self, bundle: Json, output: str, options: Any, given: Json) -> None:
        self.bundle, self.output, self.given = bundle, output, given
        self.cache = os.path.join(output, "work")
        self.probe: Json = agent.probe(dict(given, cache=self.cache, trtexec=options.trtexec))
        if not self.probe["trtexec"]:
            raise Refused("no trtexec was found: name it with --trtexec PATH")
        if not self.probe["memory"]["total"]:
            raise Refused("/proc/meminfo cannot be read")
        device = [self.probe[name] for name in ("model", "l4t", "cuda", "tensorrt")]
        device += [-(-self.probe["memory"]["total"] // agent.GIB), self.probe["trtexec"]["sha256"]]
        self.device = content_digest({"device": device})
        self.seconds: Optional[float] = options.seconds
        self.done: Dict[str, Json] = {}

    def run(self) -> List[Json]:
        """Each job's "id", the "request" as it was run, and the "result". One that fails ends no other but those that
        need what it makes."""
        for number, job in enumerate(self.bundle["jobs"]):
            head = "[{}/{}] {}: ".format(number + 1, len(self.bundle["jobs"]), job["id"])
            if "unless" in job:
                other = self.done[job["unless"]["job"]]["result"]
                if other.get("reason") != job["unless"]["reason"]:
                    tell(head + "not needed")
                    continue
            request = self.request(job)
            try:
                request["files"] = {name: self.digest(value) for name, value in job["request"]["files"].items()}
                # What this device made is no other's, should the folder be carried on to the next.
                identity = {"device": self.device, "job": job["request"], "files": request["files"]}
                request["key"] = content_digest(identity)
                self.bring(request["files"])
                result = self.do(request, head)
            except agent.Failure as failure:
                result = dict(failure.more, ok=False, reason=failure.reason, message=failure.message)
            if result["ok"]:
                tell("{}done in {} s".format(head, result["seconds"]))
            elif self.has_another_way(job, result):
                tell("{}not possible here ({}); there is another way".format(head, result["message"]))
            else:
                tell("{}failed: {}".format(head, result["message"]))
                for line in result.get("log") or ():
                    tell("    " + line)
            kept = {name: value for name, value in request.items() if name not in self.given and name != "cache"}
            self.done[job["id"]] = {"id": job["id"], "request": kept, "result": result}
        return list(self.done.values())

    def has_another_way(self, job: Json, result: Json) -> bool:
        """Whether another job takes the place of one that failed so."""
        wanted = {"job": job["id"], "reason": result["reason"]}
        return any(other.get("unless") == wanted for other in self.bundle["jobs"])

    def request(self, job: Json) -> Json:
        """The request with what only the device knows."""
        request = dict(job["request"], **self.given)
        trtexec = self.probe["trtexec"]
        request.update(
            cache=self.cache,
            trtexec=trtexec["path"],
            trtexec_sha256=trtexec["sha256"],
            tensorrt=self.probe["tensorrt"],
        )
        if self.seconds is not None:
            request["seconds"] = self.seconds
        if request.get("workspace"):
            memory = {name: self.probe["memory"][name] for name in ("total", "available")}
            request["workspace"] = dict(request["workspace"], **memory)
        if request.get("timing_cache"):
            name = "{}-{}".format(self.probe["tensorrt"], self.device[:16])
            request["timing_cache"] = dict(request["timing_cache"], name=name)
        return request

    def digest(self, value: Any) -> str:
        """The digest of a job's input: its own, or that of what an earlier job made."""
        if isinstance(value, str):
            return value
        made = self.done[value["job"]]["result"]
        if not made["ok"]:
            raise agent.Failure("needs", "it needs {}, which failed".format(value["job"]))
        return str(made["outputs"][value["output"]]["sha256"])

    def bring(self, files: Dict[str, str]) -> None:
        """Put inputs from the bundle into the agent's cache."""
        known = self.bundle["files"]
        for digest in files.values():
            if digest in known and agent.size_of(os.path.join(self.cache, "cas", digest)) != known[digest]:
                path = os.path.join(self.cache, "incoming", digest)
                agent.remove(path)
                shutil.copyfile(os.path.join(HERE, "files", digest), path)
                agent.admit(self.cache, digest, known[digest])

    def do(self, request: Json, head: str) -> Json:
        """The result of the agent's `run`, its progress in lines. Who interrupts this wants the device back."""

        def hear(event: str, doing: str = "", **more: Any) -> None:
            parts = [doing]
            parts += ["{} layers timed".format(more["layers"])] if more.get("layers") else []
            parts += ["{} s".format(more["seconds"])] if more.get("seconds") else []
            if more.get("attempt", 1) > 1:
                workspace = (more.get("workspace") or 0) // agent.MIB
                parts.append("attempt {} with {} MiB".format(more["attempt"], workspace))
            tell(head + ", ".join(parts))

        try:
            return agent.run(request, hear)
        except KeyboardInterrupt:
            agent.cancel(request)
            raise


def write_result(bench: Bench, jobs: List[Json]) -> str:
    """`result` and result.tar.gz, whose path it gives; the old ones stay until the new ones are whole."""
    files: Dict[str, int] = {}
    folder, scratch = os.path.join(bench.output, "result"), os.path.join(bench.output, ".result")
    shutil.rmtree(scratch, ignore_errors=True)
    os.makedirs(os.path.join(scratch, "files"))
    for job in jobs:
        for made in (job["result"].get("outputs") or {}).values() if job["result"]["ok"] else ():
            if made["sha256"] not in files:
                files[made["sha256"]] = made["size"]
                name = made["sha256"]
                agent.place(os.path.join(bench.cache, "cas", name), os.path.join(scratch, "files", name))
    result = {
        "schema": "trtrecipe/result/v1",
        "bundle": bench.bundle,
        "probe": {name: value for name, value in bench.probe.items() if name != "cache"},
        "jobs": jobs,
        "files": files,
    }
    result["sha256"] = content_digest(result)
    with open(os.path.join(scratch, "result.json"), "wb") as out:
        out.write(json.dumps(result, sort_keys=True, ensure_ascii=False).encode("utf-8"))
    names = ["result.json"] + ["files/" + name for name in sorted(files)]  # the list first: who reads knows what comes
    with tarfile.open(scratch + ".tar.gz", "w:gz", format=tarfile.USTAR_FORMAT, compresslevel=1) as archive:
        for name in names:
            archive.add(os.path.join(scratch, name), "result/" + name, filter=anonymous)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(scratch, folder)
    os.rename(scratch + ".tar.gz", folder + ".tar.gz")
    return folder + ".tar.gz"


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without who made a file, and when by this device's clock."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member


def main(argv: List[str], given: Json) -> int:
    """Exit status: 0 all went well, 1 a job failed, 2 nothing was run, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python3 build.py", description="Build on this device. README.txt says more.")
    parser.add_argument("--trtexec", metavar="PATH", help="the trtexec to use instead of JetPack's own")
    parser.add_argument(
        "--output", metavar="FOLDER", default=HERE, help="where to write; the bundle's folder by default"
    )
    parser.add_argument("--seconds", metavar="N", type=float, help="how long one job may take")
    options = parser.parse_args(argv)
    try:
        bundle = read_bundle()
        globals()["agent"] = load_agent(bundle)
        refuse_other_device(bundle, given.get("root") or "/")
        for digest, size in sorted(bundle["files"].items()):
            check_file(os.path.join("files", digest), digest, size)
        bench = Bench(bundle, os.path.realpath(options.output), options, given)
        jobs = bench.run()
        archive = write_result(bench, jobs)
    except Refused as refused:
        sys.stderr.write("error: {}\n".format(refused))
        return 2
    except OSError as error:
        sys.stderr.write("error: {}\n".format(error))
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped; what is finished is kept: run the same command again to go on\n")
        return 130
    failed = [job["id"] for job in jobs if not job["result"]["ok"] and not bench.has_another_way(job, job["result"])]
    if failed:
        tell("failed: {}; the same command tries that again".format(", ".join(failed)))
    tell("bring back {}".format(archive))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], {}))
