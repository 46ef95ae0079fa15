/** What `npm start` adds to an embedded PostgreSQL: sample rows, a greeting. */
import { createReadStream, existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { v5 as uuidv5 } from 'uuid';
import { needsToken } from './auth.ts';
import type { Resource } from './columns.ts';
import type { Config } from './config.ts';
import { readCsv } from './csv.ts';
import { openLog, say } from './log.ts';
import { ownCall, Pool } from './pool.ts';
import { StartError } from './problem.ts';
import { checkPort } from './server.ts';
import { Store } from './store.ts';
import { ensureTable } from './table.ts';

type TrialOptions = Pick<Config, 'DATA_DIR' | 'PORT' | 'HOST'>;

/** Starts an embedded PostgreSQL; a new one gets the sample rows. */
export async function startTrial(config: TrialOptions, resources: Resource[]) {
  await checkPort(config);
  const { startEmbedded } = await import('./embedded.ts').catch(() => {
    throw new StartError('DATABASE_URL is required here');
  });
  const { url, home, stop } = await startEmbedded(config.DATA_DIR, (place) => {
    say(`Creating a PostgreSQL in ${place} …\n`);
  });
  const fresh = join(home, 'fresh'); // until all rows are stored
  if (existsSync(fresh)) await addSamples(url, resources);
  rmSync(fresh, { force: true });
  return { url, home, stop };
}

/** A row of a sample has the same key whenever it is read, so that none is added twice. */
async function addSamples(url: string, resources: Resource[]): Promise<void> {
  const pool = new Pool(
    { DATABASE_URL: url, POOL_SIZE: 1, STREAMS: 4, DB_PREPARE: 'true' },
    openLog('silent'),
  );
  for (const resource of resources) {
    const { key, sample, keyMaker } = resource;
    await ensureTable(resource, pool);
    if (!sample) continue;
    const file = createReadStream(new URL(`../${sample}`, import.meta.url));
    const { rows } = await readCsv(resource, file, 2 ** 20);
    const keyOf = (row: object) =>
      keyMaker === 'service' && { [key]: uuidv5(JSON.stringify(row), uuidv5.URL) };
    const keyed = rows.map((row) => ({ ...keyOf(row), ...row }));
    await new Store(resource, pool).upsert(keyed, [], {}, ownCall());
  }
  await pool.end();
}

/** What to try, for a terminal; `home` is the directory of an embedded PostgreSQL. */
export function greeting(config: Config, url: string, resources: Resource[], home?: string) {
  const address = url + config.BASE_PATH;
  const commands = resources.map((resource) => commandsFor(address, resource, config)).join('');
  return `
  ${address}${home ? `, on an embedded PostgreSQL with its data in ${home}` : ''}
  ${address}/docs lists everything and tries it
${tokenFor(config, resources)}${commands}${home ? OWN_DATABASE : ''}\n`;
}
const OWN_DATABASE =
  '\n  On a PostgreSQL of your own: DATABASE_URL=postgres://user:password@host/database npm start\n\n';

/** How to get the token that the commands send; one for a `sub` that can own rows. */
function tokenFor(config: Config, resources: Resource[]): string {
  if (!needsToken(config, true)) return '';
  if (!config.JWT_SECRET) return '\n  TOKEN is a token of JWKS_URL:\n';
  const [sub = 'me'] = resources.flatMap(({ owner, example }) => (owner ? [example[owner]] : []));
  const scope = config.JWT_WRITE_SCOPE ? ` --scope ${config.JWT_WRITE_SCOPE}` : '';
  const command = `TOKEN=$(npm -s start -- token --sub ${sub}${scope})`;
  return `\n  With the same JWT_ variables exported:\n\n    ${command}\n`;
}

function commandsFor(url: string, resource: Resource, config: Config): string {
  const { path, key, keyMaker, settable, example } = resource;
  const bearer = (writes: boolean) =>
    needsToken(config, writes) ? ' -H "Authorization: Bearer $TOKEN"' : '';
  const given = keyMaker === 'body' ? [key, ...settable] : settable;
  const body = Object.fromEntries(given.map((name) => [name, example[name]]));
  const json = JSON.stringify(body).replaceAll("'", '\\u0027');
  return `
    curl '${url}/${path}?limit=2'${bearer(false)}
    curl ${url}/${path} -H 'Content-Type: application/json'${bearer(true)} \\
      -d '${json}'
`;
}
