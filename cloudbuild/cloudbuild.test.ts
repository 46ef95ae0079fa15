/** What a build config means: cloudbuild.ts does with it what Cloud Build does. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { type BuildResult, readBuild, runBuild } from './cloudbuild.ts';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const CONFIGS = ['cloudbuild.yaml', 'cloudbuild/production.yaml'];
const BUILT_IN = { PROJECT_ID: 'p', BRANCH_NAME: 'main', SHORT_SHA: 'abc1234', COMMIT_SHA: 'abc' };

let workspace: string;

before(async () => {
  workspace = await mkdtemp(join(tmpdir(), 'workspace-'));
  await mkdir(join(workspace, 'below'));
});

after(() => rm(workspace, { recursive: true }));

type Ran = BuildResult & { log: string[]; pushed: string[]; stored: string[] };
type Step = { id: string; script: string; [field: string]: unknown };

/** Steps whose command is a line of shell, as a build config. */
function config(steps: Step[], rest: object = {}): string {
  const all = steps.map(({ script, ...step }) => {
    return { name: 'tools', entrypoint: 'sh', args: ['-c', script], ...step };
  });
  return JSON.stringify({ steps: all, ...rest });
}

async function run(text: string, extent = {}, cancelled = new AbortController()): Promise<Ran> {
  const [log, pushed, stored]: [string[], string[], string[]] = [[], [], []];
  const result = await runBuild(
    readBuild(text, BUILT_IN),
    {
      workspace,
      environment: { PATH: process.env.PATH ?? '', GIVEN: 'machine' },
      print: (line) => {
        log.push(line);
        if (line.endsWith('cancel me')) cancelled.abort();
      },
      cancelled: cancelled.signal,
      readSecret: (name) => `value of ${name}`,
      pushImage: async (image) => void pushed.push(image),
      storeObjects: async (paths, location) => void stored.push(`${paths} to ${location}`),
    },
    extent,
  );
  return { ...result, log, pushed, stored };
}

const statuses = ({ steps }: Ran) => steps.map(({ id, status }) => `${id} ${status}`);
const said = ({ log }: Ran) => log.map((line) => line.replace(/^Step #\d+ - "[\w-]+": /, ''));

describe('reading', () => {
  const REFUSED: [what: string, text: string, why: RegExp][] = [
    ['an unknown field', '{"steps":[],"retries":1}', /retries/],
    ['an unknown field of a step', config([{ id: 'a', script: '', automap: true }]), /automap/],
    ['no step', '{"steps":[]}', /steps/],
    ['a number as argument', '{"steps":[{"id":"a","name":"b","args":[1.10]}]}', /args/],
    ['a time without its s', config([{ id: 'a', script: '' }], { timeout: '600' }), /600s/],
    ['an unknown substitution', config([{ id: 'a', script: 'echo $_NONE' }]), /_NONE/],
    ['a stray dollar', config([{ id: 'a', script: 'echo $(date)' }]), /\$\$/],
    ['an idle one', config([{ id: 'a', script: '' }], { substitutions: { _A: '1' } }), /_A/],
    ['a bad name', config([{ id: 'a', script: '' }], { substitutions: { A: '1' } }), /_ and/],
    [
      'a substitution of itself',
      config([{ id: 'a', script: '$_A' }], { substitutions: { _A: '$_A' } }),
      /in itself/,
    ],
    [
      'an id twice',
      config([
        { id: 'a', script: '' },
        { id: 'a', script: '' },
      ]),
      /called a/,
    ],
    ['waiting for a later step', config([{ id: 'a', script: '', waitFor: ['b'] }]), /earlier/],
    ['a secret from nowhere', config([{ id: 'a', script: '', secretEnv: ['S'] }]), /available/],
    [
      'a secret for nobody',
      config([{ id: 'a', script: '' }], {
        availableSecrets: { secretManager: [{ versionName: 'v', env: 'S' }] },
      }),
      /no step uses/,
    ],
  ];

  for (const [what, text, why] of REFUSED) {
    test(`${what} is refused`, () => {
      assert.throws(() => readBuild(text, {}), why);
    });
  }

  test('a value for a substitution that the config has not is refused', () => {
    assert.throws(() => readBuild(config([{ id: 'a', script: '' }]), { _B: '1' }), /_B/);
  });

  test('substitutions stand in each other, built-in ones are empty where there are none', () => {
    const substitutions = { _IMAGE: '$_REGISTRY/x', _REGISTRY: 'gcr.io/$PROJECT_ID' };
    const text = config([{ id: 'a', script: '$_IMAGE:$TAG_NAME. $$HOME' }], { substitutions });
    assert.deepEqual(readBuild(text, BUILT_IN).steps[0]?.args, ['-c', 'gcr.io/p/x:. $HOME']);
    const given = { ...BUILT_IN, _REGISTRY: 'here' };
    assert.deepEqual(readBuild(text, given).steps[0]?.args, ['-c', 'here/x:. $HOME']);
  });

  for (const file of CONFIGS) {
    test(`${file} is valid; steps are one command each, with a time and a pinned image`, () => {
      const build = readBuild(readFileSync(join(ROOT, file), 'utf8'), BUILT_IN);
      const { scripts } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
      for (const { id, name, entrypoint, args = [], timeout } of build.steps) {
        assert.match(name, /:[\w.-]+$/, id);
        assert.ok(timeout, `${id} has a timeout`);
        assert.doesNotMatch(args.join(' '), /[;&|<>`\n]/, `${id} holds no program`);
        assert.notEqual(entrypoint, 'sh');
        const script = args.at(args.indexOf('run') + 1);
        if (entrypoint === 'npm' && args[0] === 'run') assert.ok(script && scripts[script], id);
      }
      for (const image of build.images ?? [])
        assert.ok(
          build.steps.some(({ args }) => args?.includes(image)),
          `${image} is pushed`,
        );
    });
  }

  const SDK = '/usr/lib/google-cloud-sdk';
  const skip = existsSync(SDK) ? false : 'no gcloud here, whose own reader would be asked';
  for (const file of CONFIGS) {
    test(`gcloud's own reader takes ${file}`, { skip }, () => {
      const program = `
import sys
sys.path[:0] = ['${SDK}/lib', '${SDK}/lib/third_party']
from googlecloudsdk.api_lib.cloudbuild import cloudbuild_util, config
config.LoadCloudbuildConfigFromPath(sys.argv[1], cloudbuild_util.GetMessagesModule())
`;
      const python = `${SDK}/platform/bundledpythonunix/bin/python3`;
      const command = existsSync(python) ? python : 'python3';
      execFileSync(command, ['-c', program, join(ROOT, file)], { stdio: 'pipe' });
    });
  }
});

describe('running', () => {
  test('a step waits for all before it, or for those that it names, or for none', async () => {
    const meet = (own: string, other: string) =>
      `touch ${own}; n=0; until [ -e ${other} ]; do sleep 0.05; n=$$((n+1)); [ $$n -lt 200 ] || exit 1; done`;
    const result = await run(
      config([
        { id: 'first', script: meet('1', '2') },
        { id: 'beside', script: meet('2', '1'), waitFor: ['-'] },
        { id: 'behind', script: 'test -e 1 && touch 3', waitFor: ['first'] },
        { id: 'last', script: 'test -e 3' },
      ]),
    );
    assert.equal(result.status, 'SUCCESS', result.log.join('\n'));
  });

  test('a failure ends what runs, and nothing further starts, is pushed or stored', async () => {
    const objects = { objects: { location: 'gs://b', paths: ['x'] } };
    const result = await run(
      config(
        [
          { id: 'long', script: 'sleep 60 & sleep 60' },
          { id: 'bad', script: 'exit 3', waitFor: ['-'] },
          { id: 'next', script: 'true' },
        ],
        { images: ['i'], artifacts: objects },
      ),
    );
    assert.deepEqual(statuses(result), ['long CANCELLED', 'bad FAILURE', 'next QUEUED']);
    assert.equal(result.status, 'FAILURE');
    assert.equal(result.reason, 'step bad');
    assert.ok(said(result).includes('ended with 3'));
    assert.deepEqual([...result.pushed, ...result.stored], []);
  });

  test('images and objects follow the last step', async () => {
    const objects = { objects: { location: 'gs://b', paths: ['x', 'y'] } };
    const rest = { images: ['i:$SHORT_SHA'], artifacts: objects };
    const result = await run(config([{ id: 'a', script: 'true' }], rest));
    assert.deepEqual([...result.pushed, ...result.stored], ['i:abc1234', 'x,y to gs://b']);
  });

  test('a step that takes too long is ended', async () => {
    const result = await run(config([{ id: 'a', script: 'sleep 60', timeout: '0.2s' }]));
    assert.deepEqual([result.status, statuses(result)], ['TIMEOUT', ['a TIMEOUT']]);
  });

  test('a build that takes too long is ended', async () => {
    const steps = [{ id: 'a', script: 'sleep 60', timeout: '90s' }];
    const result = await run(config(steps, { timeout: '0.2s' }));
    assert.deepEqual([result.status, statuses(result)], ['TIMEOUT', ['a CANCELLED']]);
  });

  test('a cancelled build is no failed one', async () => {
    const result = await run(config([{ id: 'a', script: 'echo cancel me; sleep 60' }]));
    assert.deepEqual([result.status, statuses(result)], ['CANCELLED', ['a CANCELLED']]);
  });

  test('env of the step goes before that of the options, and both before the machine', async () => {
    const steps = [{ id: 'a', script: 'echo $$GIVEN $$BOTH $$ONE', env: ['BOTH=step=1'] }];
    const result = await run(
      config(steps, { options: { env: ['BOTH=options', 'GIVEN=options', 'ONE=1'] } }),
    );
    assert.ok(said(result).includes('options step=1 1'), result.log.join('\n'));
  });

  test('a secret is in the environment of the step that asks for it, and of no other', async () => {
    const secretManager = [{ versionName: 'projects/$PROJECT_ID/secrets/s', env: 'S' }];
    const result = await run(
      config(
        [
          { id: 'a', script: 'echo "got $$S"', secretEnv: ['S'] },
          { id: 'b', script: 'echo "lacks $$S"' },
        ],
        { availableSecrets: { secretManager } },
      ),
    );
    assert.ok(said(result).includes('got value of projects/p/secrets/s'));
    assert.ok(said(result).includes('lacks '));
  });

  test('dir is below the workspace', async () => {
    const result = await run(config([{ id: 'a', script: 'pwd', dir: 'below' }]));
    assert.ok(said(result).includes(join(workspace, 'below')));
  });

  test('until and done leave out steps; images are pushed by a whole build alone', async () => {
    await writeFile(join(workspace, 'ran'), '');
    const add = (id: string) => ({ id, script: `echo ${id} >> ran` });
    const text = config([add('a'), add('b'), add('c')], { images: ['i'] });
    const result = await run(text, { until: 'b', done: ['a'] });
    assert.deepEqual(statuses(result), ['a SUCCESS', 'b SUCCESS']);
    assert.equal(readFileSync(join(workspace, 'ran'), 'utf8'), 'b\n');
    assert.deepEqual(result.pushed, []);
    await assert.rejects(run(text, { until: 'd' }), /no step d/);
  });
});
