"""HTTP server of the test image: answers, lists the file system, reads files. Python 3, no packages."""
import hashlib, http.server, json, os, signal, stat, struct, sys, threading, time, urllib.parse

if "EXIT_AT_START" in os.environ:
    sys.exit(int(os.environ["EXIT_AT_START"]))
if "NEVER_ANSWER" in os.environ:
    signal.pause()

KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link", stat.S_IFIFO: "pipe",
         stat.S_IFSOCK: "socket", stat.S_IFCHR: "char", stat.S_IFBLK: "block"}


def text(name):
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def mount_points():
    with open("/proc/self/mountinfo", "rb") as lines:
        return {line.split()[4] for line in lines} - {b"/"}


def entry(path, is_mount):
    seen = os.lstat(path)
    kind = "mount" if is_mount else KINDS[stat.S_IFMT(seen.st_mode)]
    line = dict(path=text(path), kind=kind, mode=0, uid=0, gid=0, bytes=0, modified_s=0, modified_ns=0,
                links=0, device=0, target="", sha256="", xattrs={})
    if is_mount:
        return line
    line.update(mode=stat.S_IMODE(seen.st_mode), uid=seen.st_uid, gid=seen.st_gid,
                modified_s=seen.st_mtime_ns // 10**9, modified_ns=seen.st_mtime_ns % 10**9)
    line["xattrs"] = {name: os.getxattr(path, name, follow_symlinks=False).hex()
                      for name in os.listxattr(path, follow_symlinks=False)}
    if kind == "folder":
        return line
    if kind == "file":
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while piece := file.read(1 << 18):
                digest.update(piece)
        line.update(bytes=seen.st_size, sha256=digest.hexdigest())
    elif kind == "link":
        line["target"] = text(os.readlink(path))
    else:
        line["device"] = seen.st_rdev
    line["links"] = seen.st_nlink
    return line


def listing():
    mounts = mount_points()
    waiting = [b"/"]
    while waiting:
        path = waiting.pop()
        line = entry(path, path in mounts)
        if line["kind"] == "folder":
            waiting += sorted((os.path.join(path, name) for name in os.listdir(path)), reverse=True)
        yield json.dumps(line).encode() + b"\n"


class Reader(threading.Thread):
    """Reads one page after the other of the ballast, each of another block than the one before, and notes
    the longest read. Blocks repeat only when all were read, so nearly each read needs a new one. How late
    it is woken at most says how busy the machine is."""

    PAGE, PAGES_PER_BLOCK, STEP = 4096, 128, 97

    def __init__(self):
        super().__init__(daemon=True)
        self.file = os.open("/opt/ballast", os.O_RDONLY)
        self.blocks = os.fstat(self.file).st_size // (self.PAGE * self.PAGES_PER_BLOCK)
        self.reads, self.failed, self.longest_ns, self.reading_since = 0, "", 0, None
        for _ in range(int(os.environ["READS_AT_START"])):
            self.read()
        self.longest_ns = self.latest_ns = 0  # What a start waits for is reported by its agent.

    def run(self):
        while True:
            due = time.monotonic_ns() + int(os.environ["READER_PAUSE_MS"]) * 10**6
            time.sleep(max(0, due - time.monotonic_ns()) / 10**9)
            self.latest_ns = max(self.latest_ns, time.monotonic_ns() - due)
            self.read()

    def read(self):
        turn, place = divmod(self.reads, self.blocks)
        page = place * self.STEP % self.blocks * self.PAGES_PER_BLOCK + turn % self.PAGES_PER_BLOCK
        self.reading_since = time.monotonic_ns()
        try:
            if os.pread(self.file, self.PAGE, page * self.PAGE) != self.content(page):
                self.failed = f"page {page} has other bytes"
        except OSError as error:
            self.failed = f"page {page}: {error}"
        self.longest_ns = self.longest_so_far()
        self.reading_since = None
        self.reads += 1

    def longest_so_far(self):
        since = self.reading_since
        return max(self.longest_ns, time.monotonic_ns() - since if since else 0)

    def content(self, page):
        """SplitMix64 from the page's number on, as the image was built."""
        words, state, low = [], page, 2**64 - 1
        for _ in range(self.PAGE // 8):
            state = state + 0x9E3779B97F4A7C15 & low
            mixed = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & low
            mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & low
            words.append(mixed ^ mixed >> 31)
        return struct.pack("<512Q", *words)

    def report(self, forget):
        answer = dict(reads=self.reads, failed=self.failed, longest_us=self.longest_so_far() // 1000,
                      latest_us=self.latest_ns // 1000)
        if forget:
            self.longest_ns = self.latest_ns = 0
        return answer


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path == "/list":
            self.answer(listing())
        elif url.path == "/read":
            with open(query["path"], "rb") as file:
                file.seek(int(query.get("offset", 0)))
                self.answer([hashlib.sha256(file.read(int(query.get("len", -1)))).hexdigest().encode()])
        elif url.path == "/eat":
            self.server.eaten = b"x" * (int(query["mb"]) << 20)
            self.answer([b"ate\n"])
        elif url.path == "/reader":
            self.answer([json.dumps(READER.report("forget" in query)).encode()])
        elif url.path == "/sleep":
            time.sleep(int(query["ms"]) / 1000)
            self.answer([b"slept\n"])
        elif url.path == "/exit":
            os._exit(int(query["code"]))
        else:
            port = int(os.environ["PORT"])
            answer = dict(hostname=os.uname().nodename, pid=os.getpid(), port=port, born=BORN)
            self.answer([json.dumps(answer).encode()])

    def answer(self, pieces):
        self.send_response(200)
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)


if sys.argv[1:] == ["--list"]:
    sys.stdout.buffer.writelines(listing())
    sys.exit()
for module in [] if "NO_IMPORTS" in os.environ else sys.argv[1:]:
    __import__(module)
BORN = time.time_ns()
if "READER_PAUSE_MS" in os.environ:
    READER = Reader()
    READER.start()
print("listening", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
