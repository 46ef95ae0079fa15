/**
 * Publishes the promoted image: its tag and digest into the overlays, install/passengers.yaml
 * rendered from them, tested, committed and pushed.
 *
 *     npm run publish -- IMAGE:TAG     BRANCH and COMMIT of the build, GIT_TOKEN for an https origin
 *
 * It works on what the branch is now, not on what was checked out, so a push that comes in between
 * is never undone: it begins again on top. An older build does not publish over a newer one.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ask, commitOf, git, given, imageOf, readImage, root, run, step } from './commands.ts';

const ATTEMPTS = 5;
const AUTHOR = ['-c', 'user.name=Cloud Build', '-c', 'user.email=cloud-build@localhost'];

step(([image = '']) => {
  const [branch, commit] = [given('BRANCH'), given('COMMIT')];
  const isShallow = git(['rev-parse', '--is-shallow-repository']) === 'true';
  if (isShallow) git(['fetch', '--quiet', '--unshallow', 'origin', commit]); // to tell older from newer
  for (let left = ATTEMPTS; left > 0; left -= 1) {
    git(['fetch', '--quiet', 'origin', branch]);
    if (withTree((tree) => publishOn(tree, image, branch, commit))) return;
    console.log(`${branch} moved meanwhile; again on top of it`);
  }
  throw new Error(`${branch} moved ${ATTEMPTS} times while this was published; run it again`);
});

/** Acts in a tree of what the branch is now, beside the checkout. */
function withTree<T>(act: (tree: string) => T): T {
  const directory = mkdtempSync(join(tmpdir(), 'publish-'));
  const tree = join(directory, 'tree');
  git(['worktree', 'add', '--quiet', '--detach', tree, 'FETCH_HEAD']);
  try {
    symlinkSync(join(root, 'node_modules'), join(tree, 'node_modules'));
    return act(tree);
  } finally {
    git(['worktree', 'remove', '--force', tree]);
    rmSync(directory, { recursive: true });
  }
}

/** Whether it is done; not, where the branch moved before the push. */
function publishOn(tree: string, image: string, branch: string, commit: string): boolean {
  const newer = newerThan(commit, imageOf('install', tree).tag);
  if (newer) {
    console.log(`${newer} is published, which is newer than ${commit}: nothing to do`);
    return true;
  }
  const [, tag = ''] = /:([^:/]+)$/.exec(image) ?? [];
  bump(tree, tag, commit);
  git(['add', 'install', 'kustomize/overlays'], { cwd: tree });
  if (git(['status', '--porcelain', '--untracked-files=no'], { cwd: tree }) === '') {
    console.log(`${tag} is published already: nothing to do`);
    return true;
  }
  run('npm', ['run', '--silent', 'test:kustomize'], { cwd: tree });
  git([...AUTHOR, 'commit', '--quiet', '--message', `Publish ${tag}`], { cwd: tree });
  return push(tree, branch);
}

/** The published tag, where its commit comes after this one. */
function newerThan(commit: string, tag: string): string | undefined {
  const published = commitOf(tag);
  if (!published || commit.startsWith(published)) return undefined;
  try {
    git(['merge-base', '--is-ancestor', commit, published]);
    return tag;
  } catch {
    return undefined; // it is older, or of no history that we know
  }
}

/** Kustomize quotes a tag that looks like a number, so that it stays a text. */
function bump(tree: string, tag: string, commit: string): void {
  const [name = '', digest = ''] = readImage().split('@');
  const { version } = JSON.parse(readFileSync(join(tree, 'package.json'), 'utf8'));
  const label = `app.kubernetes.io/version:${version}-${commit.slice(0, 7)}`;
  for (const overlay of readdirSync(join(tree, 'kustomize/overlays'))) {
    const cwd = join(tree, 'kustomize/overlays', overlay);
    ask('kustomize', ['edit', 'set', 'image', `passengers=${name}:${tag}@${digest}`], { cwd });
    ask('kustomize', ['edit', 'add', 'label', '--force', '--without-selector', label], { cwd });
  }
  run('npm', ['run', '--silent', 'render'], { cwd: tree });
}

function push(tree: string, branch: string): boolean {
  try {
    git(['push', '--porcelain', 'origin', `HEAD:${branch}`], { cwd: tree });
  } catch (error) {
    if (/\[rejected\]|cannot lock ref/.test(String(error))) return false;
    throw error;
  }
  console.log(git(['show', '--stat', '--format=%h %s'], { cwd: tree }));
  return true;
}
