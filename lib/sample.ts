/** What `npm start` adds to an embedded PostgreSQL: the tables, sample rows, a greeting. */
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Logger } from 'pino';
import { v5 as uuidv5 } from 'uuid';
import type { Resource, Row } from './columns.ts';
import type { Config } from './config.ts';
import { parseQuery } from './dialect.ts';
import { JSON_TYPE } from './headers.ts';
import { ownCall, Pool } from './pool.ts';
import { StartError } from './problem.ts';
import { Store } from './store.ts';
import { ensureTable } from './table.ts';

type TrialOptions = Pick<Config, 'DATABASE_URL' | 'DB_PREPARE' | 'DATA_DIR'>;

/** An embedded PostgreSQL with the tables; `greet` makes a text for the terminal. */
export type Trial = { url: string; greet: (url: string) => string; stop: () => void };

/** Starts an embedded PostgreSQL and makes the tables; a new one gets the sample rows. */
export async function startTrial(
  options: TrialOptions,
  resources: Resource[],
  log: Logger,
): Promise<Trial> {
  const { startEmbedded } = await import('./embedded.ts').catch(() => {
    throw new StartError('DATABASE_URL is required here');
  });
  const { url, home, stop } = await startEmbedded(options.DATA_DIR, (place) => {
    process.stderr.write(`Creating a PostgreSQL in ${place} …\n`);
  });
  const fresh = join(home, 'fresh'); // until all rows are stored
  const pool = new Pool({ ...options, DATABASE_URL: url, POOL_SIZE: 1 }, log);
  const greetings: ((url: string) => string)[] = [];
  for (const resource of resources) {
    const store = new Store(resource, pool);
    await ensureTable(resource, pool);
    if (existsSync(fresh) && resource.sample)
      await store.upsert(readSample(resource), [], {}, ownCall());
    const example = await firstRow(resource, store);
    greetings.push((address) => greeting(address, resource, example));
  }
  rmSync(fresh, { force: true });
  await pool.end();
  const place = `on an embedded PostgreSQL with its data in ${home}`;
  const greet = (address: string) =>
    `\n  ${address}, ${place}\n${greetings.map((one) => one(address)).join('')}
  On a PostgreSQL of your own: DATABASE_URL=postgres://user:password@host/database npm start\n\n`;
  return { url, greet, stop };
}

async function firstRow(resource: Resource, store: Store): Promise<Row | undefined> {
  if (resource.owner) return undefined; // rows belong to callers, and here is none
  const wanted = { limit: 1, count: false, format: JSON_TYPE } as const;
  const { body } = await store.page(parseQuery(resource, []), wanted, ownCall());
  return JSON.parse(body)[0];
}

/** The rows of the sample file, values as text; the same keys whenever it is read. */
export function readSample({ key, sample = '', columns }: Resource): Row[] {
  const text = readFileSync(new URL(`../${sample}`, import.meta.url), 'utf8');
  const [header = '', ...lines] = text.trim().split('\n');
  const names = header.split(',').map((title) => {
    const known = Object.entries(columns).find(([name, { csv = '' }]) =>
      [name, ...csv.split(', ')].includes(title),
    );
    return known?.[0] ?? title;
  });
  return lines.map((line) => {
    const values = line.split(',');
    const row = Object.fromEntries(names.map((name, at) => [name, values[at]]));
    return { [key]: uuidv5(line, uuidv5.URL), ...row };
  });
}

/** Commands to try; with a row of the table, also how to create and to read one. */
function greeting(url: string, { path, key }: Resource, row: Row | undefined): string {
  const { [key]: id, ...body } = row ?? {};
  const json = JSON.stringify(body).replaceAll("'", '\\u0027');
  const withRow = `
    curl ${url}/${path} -H 'Content-Type: application/json' \\
      -d '${json}'
    curl ${url}/${path}/${id}`;
  return `
    curl '${url}/${path}?limit=2'${row ? withRow : ''}
`;
}
