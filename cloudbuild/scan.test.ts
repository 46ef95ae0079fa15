/** scan.ts with a docker, a gcloud and an npm that say what is to be judged. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { nodeArguments } from '../test/harness.ts';

const SCAN = fileURLToPath(new URL('scan.ts', import.meta.url));
let work: string;

before(async () => {
  work = await mkdtemp(join(tmpdir(), 'scan-'));
  mkdirSync(join(work, 'bin'));
  command('npm', `echo '{"components":[{"name":"hono","version":"4"}]}'`);
  command('docker', `printf 'libc6:amd64\\t2.41-12\\nnginx\\t1.26.3-3'`);
});

after(() => rm(work, { recursive: true }));

function command(name: string, body: string): void {
  const file = join(work, 'bin', name);
  writeFileSync(file, `#!/bin/sh\n${body}\n`);
  chmodSync(file, 0o755);
}

function finding(effectiveSeverity: string, fixed: boolean): object {
  const fixedVersion = fixed ? { kind: 'NORMAL', fullName: '2.0' } : { kind: 'MAXIMUM' };
  const packageIssue = [{ affectedPackage: 'nginx', fixedVersion }];
  const noteName = 'projects/goog-vulnz/notes/CVE-2026-0001';
  return { noteName, vulnerability: { effectiveSeverity, packageIssue } };
}

function scan(found: object[]) {
  writeFileSync(join(work, 'found.json'), JSON.stringify(found));
  command('gcloud', `case $4 in scan) echo s/1 ;; *) [ "$5" = s/1 ] && cat found.json ;; esac`);
  const env = { ...process.env, PATH: `${join(work, 'bin')}:${process.env.PATH}` };
  const args = [...nodeArguments, SCAN, 'example.org/passengers:main-0123456.dev'];
  return spawnSync(process.execPath, args, { cwd: work, env, encoding: 'utf8' });
}

const CASES: [what: string, found: object[], code: number][] = [
  ['nothing is found', [], 0],
  ['a serious fault has a fix', [finding('LOW', true), finding('CRITICAL', true)], 1],
  ['a high one has a fix', [finding('HIGH', true)], 1],
  ['a serious fault has none yet', [finding('CRITICAL', false)], 0],
  ['a fault with a fix is not serious', [finding('MEDIUM', true)], 0],
];

for (const [what, found, code] of CASES) {
  test(`${what}: ${code === 0 ? 'passes' : 'fails, and names it with its fix'}`, () => {
    const { status, stderr } = scan(found);
    assert.equal(status, code, stderr);
    if (code === 1) assert.match(stderr, /CVE-2026-0001: fixed in nginx 2\.0/);
  });
}

test("the bill of materials has npm's packages and Debian's", () => {
  assert.equal(scan([]).status, 0);
  const bill = JSON.parse(readFileSync(join(work, '.pipeline/sbom.json'), 'utf8'));
  const named = bill.components.map((one: { name: string; version: string }) => {
    return `${one.name} ${one.version}`;
  });
  assert.deepEqual(named, ['hono 4', 'libc6 2.41-12', 'nginx 1.26.3-3']);
});
