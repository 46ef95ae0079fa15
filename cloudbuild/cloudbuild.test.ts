/**
 * Build configs against Cloud Build's schema (cloud.google.com/build/docs/build-config), shellcheck,
 * and the scripts that need no cloud, run in throw-away clones. A real build alone proves the rest.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { parse } from 'yaml';
import { z } from 'zod';

const ROOT = join(import.meta.dirname, '..');
const CONFIGS = ['', '/check', '/production', '/hourly'].map((name) => `cloudbuild${name}.yaml`);
const SCRIPTS = ['check', 'bump', 'publish', 'deploy'].map((name) => `cloudbuild/${name}.sh`);
const BUILT_IN = ['PROJECT_ID', 'BUILD_ID', 'LOCATION', 'COMMIT_SHA', 'SHORT_SHA', 'BRANCH_NAME'];

const list = z.array(z.string()).default([]);
const text = z.string().default('');
const duration = z.templateLiteral([z.int(), 's']).optional();
const BUILD = z.strictObject({
  steps: z.array(
    z.strictObject({
      ...{ id: z.string(), script: text, entrypoint: text, timeout: duration },
      ...{ args: list, waitFor: list, secretEnv: list, allowFailure: z.boolean().optional() },
      name: z.string().regex(/^gcr\.io\/cloud-builders\/docker$|:v?\d[\w.-]*$/, 'no version'),
    }),
  ),
  artifacts: z.object({ objects: z.strictObject({ location: z.url(), paths: list }) }).optional(),
  availableSecrets: z.object({ secretManager: z.array(z.object({ env: z.string() })) }).optional(),
  options: z.strictObject({
    ...{ dynamicSubstitutions: z.boolean().optional(), machineType: text, env: list },
    logging: z.literal('CLOUD_LOGGING_ONLY'), // required with a service account of one's own
  }),
  ...{ images: list, timeout: duration },
  substitutions: z.record(z.string().startsWith('_'), z.string()).default({}),
});

const read = (file: string) => readFileSync(join(ROOT, file), 'utf8');
const readBuild = (file: string) => BUILD.parse(parse(read(file)));
const all = (text: string, regex: RegExp) => [...text.matchAll(regex)].map(([, one = '']) => one);
const without = (names: string[], known: string[]) => names.filter((one) => !known.includes(one));

for (const file of CONFIGS)
  describe(file, () => {
    const { steps, options, availableSecrets, substitutions, ...rest } = readBuild(file);

    test('each step has an id, a script or arguments, and waits only for earlier steps', () => {
      const ids = steps.map(({ id }) => id);
      assert.equal(new Set(ids).size, ids.length);
      for (const [at, { id, script, args, entrypoint, waitFor }] of steps.entries()) {
        assert.equal(!script, entrypoint !== '' || args.length > 0, id);
        assert.deepEqual(without(waitFor, ['-', ...ids.slice(0, at)]), []);
      }
    });

    test('substitutions are built in or declared, and every declared one is used', () => {
      const outside = steps.map(({ script, ...step }) => step);
      const used = all(JSON.stringify([outside, options, substitutions, rest]), /\$\{?(\w+)/g);
      assert.deepEqual(without(used, [...BUILT_IN, ...Object.keys(substitutions)]), []);
      assert.deepEqual(without(Object.keys(substitutions), used), []);
    });

    test('its trigger in triggers.md gives no other substitution', () => {
      const commands = read('cloudbuild/triggers.md').split('\n');
      const command =
        commands.find((line) => line.includes(`--build-config=${file} `)) ?? '=_NO_TRIGGER=';
      assert.deepEqual(without(all(command, /[=,](_\w+)=/g), Object.keys(substitutions)), []);
    });

    test('the variables of a script are in options.env, or secrets of its step', () => {
      const env = options.env.map((pair) => pair.replace(/=.*/, ''));
      const secrets = availableSecrets?.secretManager.map((secret) => secret.env) ?? [];
      for (const { id, script, args, secretEnv } of steps) {
        const text = [script, ...args.filter((one) => SCRIPTS.includes(one)).map(read)].join('\n');
        const given = [...env, ...secretEnv, ...all(text, /\b([A-Z_0-9]+)=/g), 'PWD'];
        assert.deepEqual(without(all(text, /\$\{?([A-Z][A-Z_0-9]*)/g), given), [], id);
        assert.deepEqual(without(secretEnv, secrets), [], id);
      }
    });
  });

/** Why to skip what needs `command`, if it does not run here; under CI nothing is skipped. */
const lacks = (command: string, ...args: string[]) => {
  const { status } = spawnSync(command, args, { cwd: ROOT });
  return status !== 0 && !process.env.CI ? `${command} is missing` : false;
};

describe('shellcheck', { skip: lacks('shellcheck', '--version') }, () => {
  const files = [...SCRIPTS, 'test/pipeline.sh', 'test/kustomize.sh'];
  const texts = files.map((file) => ({ id: file, script: read(file) }));
  const steps = CONFIGS.flatMap((file) => readBuild(file).steps);
  for (const { id, script } of [...texts, ...steps.filter((step) => step.script)])
    test(id, () => {
      const args = ['--shell', script.startsWith('#!/bin/bash') ? 'bash' : 'sh', '-'];
      assert.equal(spawnSync('shellcheck', args, { input: script }).stdout.toString(), '');
    });
});

/** A new directory with a command that run() finds before others of the PATH. */
function makeDirectory(command: string, script: string): string {
  const directory = mkdtempSync(join(tmpdir(), 'cloudbuild-'));
  after(() => rmSync(directory, { recursive: true }));
  mkdirSync(`${directory}/bin`);
  writeFileSync(`${directory}/bin/${command}`, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  return directory;
}

/** Runs bash in such a directory; returns what it printed on both outputs. */
function run(cwd: string, command: string, environment: object = {}, expected = 0): string {
  const env = { ...process.env, ...environment, PATH: `${cwd}/bin:${process.env.PATH}` };
  const { status, stdout, stderr } = spawnSync('bash', ['-ec', command], { cwd, env });
  assert.equal(status, expected, `${stdout}${stderr}`);
  return `${stdout}${stderr}`.trim();
}

const FILES = ['kustomize', 'install', 'cloudbuild', 'package.json'];
const KUSTOMIZE = spawnSync('test/kustomize.sh', { cwd: ROOT }).stdout?.toString().trim();
const DIGEST = `sha256:${'0123456789abcdef'.repeat(4)}`;
const COMMIT = 'git -c user.name=t -c user.email=t@localhost commit -q --allow-empty -m';
/** Somebody else pushes when publish.sh renders, the first $PUSHES times. */
const PUSHING = `[ $1 = edit ] || [ $(wc -l <$CHECKOUT/pushed) = $PUSHES ] || (
  cd $CHECKOUT; echo >>pushed; ${COMMIT} Between; git push -q origin main)
exec ${KUSTOMIZE} "$@"`;

const skip = lacks('kubectl', 'version', '--client') || lacks('test/kustomize.sh');

describe('publish.sh', { skip }, () => {
  const cwd = makeDirectory('kustomize', PUSHING);
  for (const path of FILES) cpSync(join(ROOT, path), `${cwd}/${path}`, { recursive: true });
  const initial = `sed -i 's|"uri": ".*"|"uri": "/elsewhere"|' package.json; git init -q -b main
    git init -q --bare -b main origin; git remote add origin ${cwd}/origin; git add ${FILES.join(' ')}
    ${COMMIT} First; ${COMMIT} Second; git push -q origin main`;
  run(cwd, initial);
  const [second = '', first = ''] = run(cwd, 'git log --format=%h').split('\n');
  const log = () => run(`${cwd}/origin`, 'git log --format=%s main').split('\n');
  const released = `Publish main-${second}`;
  const publish = (of: string, digest = DIGEST, PUSHES = '0', status = 0) => {
    writeFileSync(`${cwd}/image.txt`, `gcr.io/p/passengers@${digest}\n`);
    const names = { REPOSITORY: `${cwd}/origin`, BRANCH: 'main', TAG: `main-${of}`, GIT_TOKEN: '' };
    const env = { ...names, COMMIT: of, CHECKOUT: cwd, PUSHES };
    return run(cwd, ': >pushed; rm -f release.txt; sh cloudbuild/publish.sh', env, status);
  };

  // The tests follow each other on one origin.
  test('fails where others push twice in between', () => {
    publish(second, DIGEST, '2', 1);
    assert.deepEqual(log(), ['Between', 'Between', 'Second', 'First']);
  });

  test('commits on top of what others push in between, and numbers the release', () => {
    publish(second, DIGEST, '1');
    assert.deepEqual(log().slice(0, 2), [released, 'Between']);
    assert.equal(readFileSync(`${cwd}/release.txt`, 'utf8'), '1\n');
  });

  test('commits image, version label, uri and the rendered install/passengers.yaml', () => {
    const published = run(cwd, 'git pull -q origin main; cat install/passengers.yaml');
    assert.equal(run(cwd, 'kubectl kustomize kustomize/overlays/install'), published);
    const images = all(published, /image: (\S+passengers\S+)/g);
    assert.deepEqual([...new Set(images)], [`gcr.io/p/passengers:main-${second}@${DIGEST}`]);
    assert.match(published, new RegExp(`app.kubernetes.io/version: [\\d.]+-${second}$`, 'm'));
    run(cwd, 'grep "value: /elsewhere$" kustomize/components/gateway/httproute.yaml');
  });

  test('commits only what passengers-main ignores, so that no build starts another', () => {
    const [ignored = ''] = all(read('cloudbuild/triggers.md'), /--ignored-files='(.*?)'/g);
    const globs = ignored.replaceAll(/([^,]+)\/\*\*,?/g, "':!$1' ");
    assert.equal(run(cwd, `git diff --name-only HEAD~ -- ${globs}`), '');
  });

  test('commits nothing where nothing changed, and keeps a newer release', () => {
    assert.match(publish(second), /published already/);
    assert.match(publish(first), /newer/);
    assert.deepEqual(log().slice(0, 2), [released, 'Between']);
  });

  test('commits the new digest of a rebuilt commit', () => {
    publish(second, DIGEST.replace('0', 'f'));
    assert.deepEqual(log().slice(0, 3), [released, released, 'Between']);
    assert.equal(readFileSync(`${cwd}/release.txt`, 'utf8'), '2\n');
  });
});

/** What `apply` and `rollout status` do to revision 5, and others before the tests fail. */
type Rollout = { name: string; apply: string; status?: string; others?: string; undone?: boolean };

const ROLLOUTS: Rollout[] = [
  { name: 'a refused apply undoes nothing', apply: 'exit 1' },
  { name: 'an apply that fails half-way is undone', apply: 'echo 6 >now; exit 1', undone: true },
  { name: 'a failed rollout is undone', apply: 'echo 6 >now', status: 'exit 1', undone: true },
  { name: 'failed tests undo a new revision', apply: 'echo 6 >now', others: ':', undone: true },
  { name: 'failed tests of the same revision undo nothing', apply: ':', others: ':' },
  { name: 'failed tests undo no newer revision', apply: 'echo 6 >now', others: 'echo 7 >now' },
];

describe('deploy.sh', () => {
  for (const { name, apply, status = ':', others, undone } of ROLLOUTS)
    test(name, () => {
      const kubectl = `shift 2; echo "$*" >>calls
        case $* in
          apply*) ${apply} ;;
          'rollout status'*) [ -f undone ] || ${status} ;;
          'rollout undo'*) touch undone ;;
          *metadata.generation*) echo 1 ;;
          *revision*) cat now ;;
          api-resources*) echo ingresses.networking.k8s.io ;;
        esac`;
      const cwd = makeDirectory('kubectl', kubectl);
      const deploy = `bash ${ROOT}/cloudbuild/deploy.sh`;
      run(cwd, `echo 5 >now; ${deploy} apply passengers-test test`, {}, others ? 0 : 1);
      if (others) run(cwd, `${others}; ${deploy} undo passengers-test`);
      const calls = readFileSync(`${cwd}/calls`, 'utf8').match(/^rollout undo.*$/gm);
      const undo = 'rollout undo deployment/passengers --to-revision 5';
      assert.deepEqual(calls, undone ? [undo] : null);
    });
});
