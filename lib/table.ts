/** Makes the table of a resource, or checks it. */
import { type Column, define, type Resource, typeOf } from './columns.ts';
import { ownCall, type Pool } from './pool.ts';
import { codeOf, StartError } from './problem.ts';
import { literal, quote, Sql, sql } from './sql.ts';

/**
 * Creates the table or its missing columns under an advisory lock; issues no DDL when nothing is
 * missing. Throws StartError that names the differences, Problem while the database is unavailable.
 */
export async function ensureTable(resource: Resource, pool: Pool): Promise<void> {
  const call = ownCall();
  for (const altered of [false, true]) {
    const found = (await pool.json(describeTable(resource.table))) as Existing[];
    const differences = compareTable(resource, found);
    const faults = differences.map(({ fault }) => fault).join('; ');
    const message = `table ${resource.table}: ${faults}`;
    const repairs = differences.flatMap(({ ddl }) => ddl ?? []);
    for (const { name, notNull } of found) if (notNull) resource.notNull.add(name);
    if (differences.length === 0) return;
    if (altered || repairs.length < differences.length) throw new StartError(message);
    const lock = `select pg_advisory_xact_lock(hashtext(${literal(resource.table)}))`;
    const batch = [lock, ...repairs].join('; '); // one simple query is one transaction
    await pool.run('write', call, new Sql(batch)).catch((error) => {
      const denied = codeOf(error) === '42501';
      throw denied ? new StartError(`${message}; the database role may not add it`) : error;
    });
  }
}

function describeTable(table: string): Sql {
  return sql`
    select attname as name, format_type(atttypid, atttypmod) as type, exists (
      select from pg_index where indrelid = attrelid and indisunique and indkey::text = attnum::text
    ) as unique, attnotnull and not atthasdef and attidentity = '' as required,
      attnotnull as "notNull"
    from pg_attribute
    where attrelid = to_regclass(${quote(table)}) and attnum > 0 and not attisdropped`;
}

/** A column of the table. */
type Existing = {
  name: string;
  type: string;
  unique: boolean;
  required: boolean;
  notNull: boolean;
};

/** A difference between declaration and table; `ddl` removes it where the service may do so. */
type Difference = { fault: string; ddl?: string };

function compareTable(resource: Resource, found: Existing[]): Difference[] {
  const { table, key, names, columns } = resource;
  const existing = new Map(found.map((column) => [column.name, column]));
  const definitions = Object.entries(columns).map(([name, column]) => define(name, column));
  const all = [`${quote(key)} uuid primary key`, ...definitions].join(', ');
  const create = `create table if not exists ${quote(table)} (${all})`;
  if (found.length === 0) return [{ fault: 'is missing', ddl: create }];
  const differences = names.flatMap((name) => {
    const fault = compareColumn(name, typeOf(resource, name), columns[name], existing.get(name));
    if (!fault) return [];
    const addable = !existing.has(name) && columns[name] && isOptional(columns[name]);
    const add = `alter table ${quote(table)} add column if not exists `;
    return addable ? { fault, ddl: add + define(name, columns[name] as Column) } : { fault };
  });
  if (!existing.get(key)?.unique) differences.unshift({ fault: `${key} has no unique index` });
  const undeclared = found.filter(({ name, required }) => {
    return required && !names.includes(name);
  });
  return [
    ...differences,
    ...undeclared.map(({ name }) => ({ fault: `${name} is required by the table, not declared` })),
  ];
}

function compareColumn(name: string, type: string, column?: Column, existing?: Existing) {
  if (!existing) return `${name} is missing`;
  if (existing.type !== type) return `${name} is ${existing.type}, declared ${type}`;
  if (column?.unique && !existing.unique) return `${name} has no unique index`;
  return undefined;
}

/** Whether existing rows get a value when the column is added. */
function isOptional({ nullable, generated, default: initial }: Column): boolean {
  return Boolean(nullable || generated || initial !== undefined);
}
