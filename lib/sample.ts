/** What `npm start` adds to an embedded PostgreSQL: sample rows, a greeting. */
import { createReadStream, existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { v5 as uuidv5 } from 'uuid';
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
export function greeting(address: string, resources: Resource[], home?: string): string {
  const commands = resources.map((resource) => commandsFor(address, resource)).join('');
  return `
  ${address}${home ? `, on an embedded PostgreSQL with its data in ${home}` : ''}
  ${address}/docs lists everything and tries it
${commands}${home ? OWN_DATABASE : ''}\n`;
}
const OWN_DATABASE =
  '\n  On a PostgreSQL of your own: DATABASE_URL=postgres://user:password@host/database npm start\n\n';

/** Commands to try; to create a row that has an owner needs a token. */
function commandsFor(url: string, { path, owner, settable, example }: Resource): string {
  const list = `\n    curl '${url}/${path}?limit=2'\n`;
  const body = Object.fromEntries(settable.map((name) => [name, example[name]]));
  const json = JSON.stringify(body).replaceAll("'", '\\u0027');
  const create = `    curl ${url}/${path} -H 'Content-Type: application/json' \\\n      -d '${json}'\n`;
  return owner ? list : list + create;
}
