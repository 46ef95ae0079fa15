/** What the steps of the pipeline share: commands, and the image that they are about. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parse } from 'yaml';

/** The project's root. Steps run there. */
export const root = fileURLToPath(new URL('..', import.meta.url));

/** What a step leaves for the next: files in here, which git does not know. */
export const state = '.pipeline';

type How = { input?: string; cwd?: string; env?: NodeJS.ProcessEnv };

/** Runs a command; returns what it printed. Throws with what it complained of. */
export function ask(command: string, args: string[], how: How = {}): string {
  const { status, error, stdout, stderr } = spawnSync(command, args, {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    ...how,
  });
  if (status === 0) return stdout.trim();
  throw new Error(`${command} ${args.join(' ')}: ${error?.message ?? `${stderr}${stdout}`.trim()}`);
}

/** git asks this for a password; the token itself stands in no argument. */
const HELPER = '!f() { echo username=x-access-token; echo "password=$GIT_TOKEN"; }; f';

/** Runs git, with GIT_TOKEN for an origin that asks for it. */
export function git(args: string[], how: How = {}): string {
  const credentials = ['-c', 'credential.helper=', '-c', `credential.helper=${HELPER}`];
  return ask('git', [...credentials, ...args], how);
}

/** Runs a command whose words are for the log. Throws when it fails. */
export function run(command: string, args: string[], how: How = {}): void {
  const input = how.input === undefined ? 'ignore' : 'pipe';
  execFileSync(command, args, { ...how, stdio: [input, 'inherit', 'inherit'] });
}

/** The value of a variable that the build config has to give. */
export function given(variable: string): string {
  const value = process.env[variable];
  if (value) return value;
  throw new Error(`expected ${variable} in the environment; cloudbuild.yaml sets it`);
}

/** Runs a step; says why it failed in one line. */
export async function step(act: (args: string[]) => void | Promise<void>): Promise<void> {
  try {
    await act(process.argv.slice(2));
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exitCode = 1;
  }
}

/** The digest that a registry has for an image, and the labels. Undefined where it has none. */
export function inspect(image: string): { digest: string; labels: Record<string, string> } {
  const reference = `docker://${image.replace(/:[^:@/]+@/, '@')}`; // skopeo takes a tag or a digest
  const found = JSON.parse(ask('skopeo', ['inspect', '--no-tags', reference]));
  return { digest: found.Digest, labels: found.Labels ?? {} };
}

/** The image of this build, NAME@DIGEST, as the step push found it in the registry. */
export function readImage(): string {
  return readFileSync(`${state}/image`, 'utf8').trim();
}

export function writeImage(image: string): void {
  mkdirSync(state, { recursive: true });
  writeFileSync(`${state}/image`, `${image}\n`);
}

export type Published = { name: string; tag: string; digest: string };

/** The image that an overlay names. */
export function imageOf(overlay: string, directory = '.'): Published {
  const file = `${directory}/kustomize/overlays/${overlay}/kustomization.yaml`;
  const { images = [] } = parse(readFileSync(file, 'utf8'));
  const image = images.find((one: { name: string }) => one.name === 'passengers');
  if (!image) throw new Error(`expected an image called passengers in ${file}`);
  return { name: image.newName, tag: image.newTag ?? '', digest: image.digest ?? '' };
}

/** The commit that a tag BRANCH-SHORTSHA was made from. */
export function commitOf(tag: string): string | undefined {
  return /-([0-9a-f]{7,40})$/.exec(tag)?.[1];
}
