/**
 * A container of the image without an engine: buildah mounts its root, runc runs it as a cluster
 * does: read-only, under a user id of its own with group 0, without a capability, with /tmp alone
 * to write to. It has the host's network, so its ports are those of the image and have to be free.
 */
import { spawn } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { buildah } from './build-image.ts';
import { childrenOf, isRunning, until } from './harness.ts';

/** Its ports are the image's, so that two tests on one machine have to take turns. */
const LOCK = join(tmpdir(), 'passengers-ports.lock');

export const USER = 1000620000; // as OpenShift gives them
export const PUBLIC = 'http://127.0.0.1:8080';
export const PROBES = 'http://127.0.0.1:8081';

/** What the Dockerfile says of a container, and where its root is mounted. */
export type Image = {
  root: string;
  config: { Env: string[]; Entrypoint: string[]; WorkingDir: string; User: string; Labels: object };
  close: () => void;
};

export function openImage(tag: string): Image {
  const container = buildah('from', '--pull-never', tag);
  const { OCIv1 } = JSON.parse(buildah('inspect', '--type', 'image', tag));
  const root = buildah('mount', container);
  return { root, config: OCIv1.config, close: () => void buildah('rm', container) };
}

/** A line of the container's log, if it was JSON. */
export type Line = { text: string; json?: Record<string, unknown> };

/** A running container; `pids()` are those of its processes, seen from the host, by name. */
export type Container = {
  lines: Line[];
  /** Resolves with the first line, of those after `from`, that satisfies. */
  logged: (
    satisfies: (line: Record<string, unknown>) => unknown,
  ) => Promise<Record<string, unknown>>;
  pids: (name: string) => Promise<number[]>;
  kill: (signal: NodeJS.Signals) => Promise<void>;
  ended: Promise<number | null>;
  stop: () => Promise<number | null>;
};

/**
 * Starts `image`, with `environment` on top of its own, and does not wait for it to be ready.
 * Unless `heard` its log is thrown away: to read it costs as much as to answer a request.
 */
export async function startContainer(
  image: Image,
  environment: Record<string, string>,
  { heard = true } = {},
): Promise<Container> {
  await until(async () => !(await anyTaken()), 60_000).catch(() => {
    throw new Error('ports 8000, 8080 and 8081 of 127.0.0.1 have to be free');
  });
  const bundle = await mkdtemp(join(tmpdir(), 'passengers-bundle-'));
  await writeFile(join(bundle, 'config.json'), JSON.stringify(specification(image, environment)));
  const id = bundle.replace(/.*-/, 'passengers-');
  const runc = `runc --root ${bundle}/state`;
  // stdout is a pipe, as an engine gives it; one of Node's would be a socket, which cannot be opened
  const script = `set -o pipefail; flock --timeout 120 ${LOCK} ${runc} run --bundle ${bundle} ${id} 2>&1 | cat${heard ? '' : ' >/dev/null'}`;
  const child = spawn('bash', ['-c', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  const lines: Line[] = [];
  const events = new EventEmitter().setMaxListeners(0);
  createInterface(child.stdout).on('line', (text) => {
    const parsed = parse(text);
    lines.push(parsed ? { text, json: parsed } : { text });
    events.emit('line');
  });
  const closed = once(child, 'close');
  const ended = closed.then(async () => {
    await rm(bundle, { recursive: true });
    return child.exitCode;
  });
  const kill = async (signal: string) => {
    await once(spawn('bash', ['-c', `${runc} kill ${id} ${signal}`], { stdio: 'ignore' }), 'exit');
  };
  const logged: Container['logged'] = async (satisfies) => {
    for (let at = 0; ; at += 1) {
      while (at >= lines.length) {
        await Promise.race([once(events, 'line'), closed]);
        if (at >= lines.length && child.exitCode !== null)
          throw new Error(`ended: ${lines.map(({ text }) => text).join('\n')}`);
      }
      const { json } = lines[at] ?? {};
      if (json && satisfies(json)) return json;
    }
  };
  const pids = async (name: string) => {
    const first = Number(
      await readFile(join(bundle, 'state', id, 'pid'), 'utf8').catch(() => init()),
    );
    return named(await descendants(first), name);
  };
  const init = async () =>
    JSON.parse(await readFile(join(bundle, 'state', id, 'state.json'), 'utf8')).init_process_pid;
  const stop = async () => {
    const late = setTimeout(() => void kill('KILL'), 25_000);
    if (child.exitCode === null) await kill('TERM');
    return ended.finally(() => clearTimeout(late));
  };
  return { lines, logged, pids, kill, ended, stop };
}

function parse(text: string): Record<string, unknown> | undefined {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function specification({ root, config }: Image, environment: Record<string, string>) {
  const env = Object.entries(environment).map(([name, value]) => `${name}=${value}`);
  const none: string[] = [];
  const own = ['nosuid', 'noexec', 'nodev'];
  return {
    ociVersion: '1.0.2',
    process: {
      user: { uid: USER, gid: 0 },
      args: config.Entrypoint,
      env: [...config.Env, ...env],
      cwd: config.WorkingDir,
      capabilities: { bounding: none, effective: none, permitted: none, inheritable: none },
      noNewPrivileges: true,
    },
    root: { path: root, readonly: true },
    mounts: [
      { destination: '/proc', type: 'proc', source: 'proc', options: own },
      { destination: '/dev', type: 'tmpfs', source: 'tmpfs', options: ['nosuid', 'mode=755'] },
      { destination: '/tmp', type: 'tmpfs', source: 'tmpfs', options: [...own, 'mode=1777'] },
    ],
    linux: { namespaces: ['pid', 'mount', 'ipc', 'uts'].map((type) => ({ type })) },
  };
}

async function anyTaken(): Promise<boolean> {
  const taken = await Promise.all([8000, 8080, 8081].map(isTaken));
  return taken.includes(true);
}

function isTaken(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1', () => {
      socket.destroy();
      resolve(true);
    });
    socket.on('error', () => resolve(false));
  });
}

async function descendants(pid: number): Promise<number[]> {
  const children = await childrenOf(pid);
  const deeper = await Promise.all(children.map(descendants));
  return [...children, ...deeper.flat()];
}

async function named(pids: number[], name: string): Promise<number[]> {
  const found = await Promise.all(
    pids.map(async (pid) => {
      const title = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
      return title.startsWith(name) && (await isRunning(pid)) ? [pid] : [];
    }),
  );
  return found.flat();
}
