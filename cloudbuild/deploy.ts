/**
 * Brings the image of this build into a cluster, and back out where it does not prove itself.
 *
 *     npm run deploy -- OVERLAY                    applies it and waits until it serves
 *     npm run undo-unless -- OVERLAY SCRIPT ARGS   runs an npm script; undoes the rollout if it fails
 *
 * The script gets TOKEN, a token of a quarter of an hour that the deployment itself signs: it is
 * never an argument and never printed.
 */
import { cpSync, rmSync } from 'node:fs';
import { parseAllDocuments } from 'yaml';
import { ask, imageOf, readImage, run, state, step } from './commands.ts';

const WAIT = '300s';

step(([command, overlay = '', ...rest]) => {
  if (command === 'deploy') return deploy(overlay);
  if (command === 'undo-unless' && rest.length > 0) return undoUnless(overlay, rest);
  throw new Error('expected deploy OVERLAY, or undo-unless OVERLAY SCRIPT ARGS');
});

type Target = { manifests: string; namespace: string; deployment: string };

/** The overlay with the image of this build in it; the files of the checkout stay as they are. */
function render(overlay: string): Target {
  const copy = `${state}/kustomize`;
  rmSync(copy, { recursive: true, force: true });
  cpSync('kustomize', copy, { recursive: true });
  const cwd = `${copy}/overlays/${overlay}`;
  imageOf(overlay); // says it where there is none to set
  ask('kustomize', ['edit', 'set', 'image', `passengers=${readImage()}`], { cwd });
  const manifests = ask('kustomize', ['build', cwd]);
  const all = parseAllDocuments(manifests).map((document) => document.toJS());
  const found = all.find(({ kind, metadata }) => {
    return kind === 'Deployment' && metadata.name === 'passengers';
  });
  if (!found) throw new Error(`expected a Deployment passengers in overlays/${overlay}`);
  return { manifests, namespace: found.metadata.namespace, deployment: 'deployment/passengers' };
}

function deploy(overlay: string): void {
  const target = render(overlay);
  orUndo(target, () => {
    run('kubectl', ['apply', '--filename=-'], { input: target.manifests });
    waitFor(target);
  });
}

function undoUnless(overlay: string, [script = '', ...args]: string[]): void {
  const target = render(overlay);
  orUndo(target, () => {
    const env = { ...process.env, TOKEN: token(target) };
    run('npm', ['run', '--silent', script, '--', ...args], { env });
  });
}

function waitFor({ namespace, deployment }: Target): void {
  const args = ['--namespace', namespace, 'rollout', 'status', deployment, `--timeout=${WAIT}`];
  run('kubectl', args);
}

function token({ namespace, deployment }: Target): string {
  const where = ['--namespace', namespace, 'exec', deployment, '--container=passengers'];
  const what = ['--', 'node', 'app.ts', 'token', '--sub', 'pipeline', '--expires', '15m'];
  return ask('kubectl', [...where, ...what]);
}

/** Where `act` fails: shows the logs, returns to what ran before, and fails all the same. */
function orUndo(target: Target, act: () => void): void {
  const { namespace, deployment } = target;
  const kubectl = (...args: string[]) => run('kubectl', ['--namespace', namespace, ...args]);
  try {
    act();
  } catch (failure) {
    console.error(`${deployment} in ${namespace} failed; its logs:`);
    const attempts = [
      () => kubectl('logs', deployment, '--all-containers', '--prefix', '--tail=100'),
      () => kubectl('rollout', 'undo', deployment),
      () => waitFor(target),
    ];
    for (const attempt of attempts) tell(attempt);
    throw failure;
  }
}

/** What fails while undoing must not hide why it was undone: the first rollout has none before. */
function tell(attempt: () => void): void {
  try {
    attempt();
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
  }
}
