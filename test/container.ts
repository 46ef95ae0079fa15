/**
 * A container of the image without an engine: buildah mounts its root, runc runs it as a cluster
 * does: read-only, as a user id of group 0, without capabilities, with only /tmp writable. It shares
 * the host's network, so the image's ports have to be free.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { buildah } from './build-image.ts';
import { childrenOf, until } from './harness.ts';

/** Two containers on one machine take turns, since they have the same ports. */
const LOCK = join(tmpdir(), 'passengers-ports.lock');

export const USER = 1000620000; // as OpenShift assigns them
export const PUBLIC = 'http://127.0.0.1:8080';
export const PROBES = 'http://127.0.0.1:8081';

/** An image, with its root mounted. */
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

/** A line of the container's stdout; `text` is its only member if it is not JSON. */
type Line = { text?: string; [name: string]: unknown };

/**
 * Starts `image` with `environment` added to its own, and with files of the host by their path in
 * the container; does not wait until it is ready.
 */
export async function startContainer(
  image: Image,
  environment: Record<string, string>,
  mounts: Record<string, string> = {},
) {
  const bundle = await mkdtemp(join(tmpdir(), 'passengers-bundle-'));
  const id = bundle.replace(/.*-/, 'passengers-');
  const state = join(bundle, 'state');
  await writeFile(join(bundle, 'config.json'), specify(image, environment, mounts));
  // an engine's stdout and stderr are pipes; Node's are sockets, which /dev/stdout cannot open
  const run = `flock --timeout 120 ${LOCK} runc --root ${state} run --bundle ${bundle} ${id}`;
  const script = `set -o pipefail; ${run} 2> >(cat >&2) | cat`;
  const child = spawn('bash', ['-c', script], { stdio: ['ignore', 'pipe', 'pipe'] });
  const lines: Line[] = [];
  createInterface(child.stdout).on('line', (text) =>
    lines.push(text.startsWith('{') ? JSON.parse(text) : { text }),
  );
  let stderr = '';
  child.stderr.on('data', (data) => {
    stderr = (stderr + data).slice(-1e6);
  });
  const ended = once(child, 'close').then(async () => {
    await rm(bundle, { recursive: true });
    return child.exitCode;
  });
  const kill = (signal: string) =>
    once(spawn('runc', ['--root', state, 'kill', id, signal]), 'exit');
  /** The first line that satisfies, once it is there. */
  const logged = async (satisfies: (line: Line) => unknown) => {
    await until(() => lines.some(satisfies) || child.exitCode !== null);
    const line = lines.find(satisfies);
    if (!line) throw new Error(`${JSON.stringify(lines)} ${stderr}`);
    return line;
  };
  /** Its processes whose command begins with `name`, by their ids on the host. */
  const pids = async (name: string): Promise<number[]> => {
    const text = await readFile(join(state, id, 'state.json'), 'utf8').catch(() => '{}');
    const { init_process_pid: first } = JSON.parse(text);
    const all = first ? await descendants(first) : [];
    const commandOf = (pid: number) => readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
    const commands = await Promise.all(all.map(commandOf)); // a zombie's is empty
    return all.filter((_, at) => commands[at]?.startsWith(name));
  };
  const stop = async () => {
    const late = setTimeout(() => void kill('KILL'), 25_000);
    if (child.exitCode === null) await kill('TERM');
    return ended.finally(() => clearTimeout(late));
  };
  return { lines, stderr: () => stderr, logged, pids, kill, ended, stop };
}

function specify(
  { root, config }: Image,
  environment: object,
  mounts: Record<string, string>,
): string {
  const none: string[] = [];
  const safe = ['nosuid', 'noexec', 'nodev'];
  const tmpfs = { type: 'tmpfs', source: 'tmpfs' };
  const files = Object.entries(mounts).map(([destination, source]) => {
    return { destination, source, type: 'bind', options: ['bind', 'ro'] };
  });
  return JSON.stringify({
    ociVersion: '1.0.2',
    process: {
      user: { uid: USER, gid: 0 },
      args: config.Entrypoint,
      env: [...config.Env, ...Object.entries(environment).map((pair) => pair.join('='))],
      cwd: config.WorkingDir,
      capabilities: { bounding: none, effective: none, permitted: none, inheritable: none },
      rlimits: [{ type: 'RLIMIT_NOFILE', soft: 1024, hard: 1024 }],
      noNewPrivileges: true,
    },
    root: { path: root, readonly: true },
    mounts: [
      { destination: '/proc', type: 'proc', source: 'proc', options: safe },
      { destination: '/dev', ...tmpfs, options: ['nosuid', 'mode=755'] },
      { destination: '/tmp', ...tmpfs, options: [...safe, 'mode=1777'] },
      ...files,
    ],
    linux: { namespaces: ['pid', 'mount', 'ipc', 'uts'].map((type) => ({ type })) },
  });
}

async function descendants(pid: number): Promise<number[]> {
  const children = await childrenOf(pid);
  return [...children, ...(await Promise.all(children.map(descendants))).flat()];
}
