"""PID 1 of the image: supervisord, which alone stays up with every program dead and always exits with 0.

This one stops the container, with exit code 1, when it can no longer serve: when nginx has ended, Node
has exited with 2 (wrong configuration) or has crashed too often, or a program cannot be started.
"""

import contextlib
import glob
import json
import os
import resource
import sys
import time

from supervisor import events
from supervisor.medusa.asyncore_25 import ExitNow
from supervisor.options import ServerOptions
from supervisor.states import SupervisorStates
from supervisor.supervisord import Supervisor

MOST_CRASHES, WINDOW = 6, 60  # of Node, in seconds: a few kills are survived, a crash at each start is not


class Container(Supervisor):
    crashes: list[float] = []
    exit_code = 0

    def runforever(self):  # run() clears the subscriptions before it calls this
        events.subscribe(events.ProcessStateExitedEvent, self.judge)
        events.subscribe(events.ProcessStateFatalEvent, self.judge)
        super().runforever()

    def judge(self, event):
        name, now = event.process.config.name, time.monotonic()
        is_crash = name == "node" and not event.expected
        if is_crash:
            self.crashes = [at for at in self.crashes if at > now - WINDOW] + [now]
        if not is_crash or len(self.crashes) > MOST_CRASHES:
            self.exit_code = 1
            self.options.mood = SupervisorStates.SHUTDOWN  # as SIGTERM does
        line = {"level": "fatal" if self.exit_code else "error", "time": int(time.time() * 1000)}
        with contextlib.suppress(OSError):  # nobody reads stdout
            print(json.dumps({**line, "msg": f"{name} ended", "crashes": len(self.crashes)}), flush=True)


# Node looks for compiled code under a name that ends in its user id; the image was built as user 0.
for built in glob.glob("/var/cache/node/*-0"):
    link = f"{os.environ['NODE_COMPILE_CACHE']}/{os.path.basename(built)[:-1]}{os.getuid()}"
    if not os.path.lexists(link):  # a restarted container still has it
        os.symlink(built, link)

# nginx takes two descriptors for a proxied request, and the soft limit is often 1024.
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

options = ServerOptions()
options.realize(["--configuration=/etc/supervisor/supervisord.conf"])
options.first, options.test = True, False
# It notices an end after its poll of 1 s, which Python resumes after SIGCHLD; so poll for less.
poll = options.poller.poll
options.poller.poll = lambda _: poll(0.1)
container = Container(options)
try:
    container.main()
except ExitNow:
    sys.exit(container.exit_code)
