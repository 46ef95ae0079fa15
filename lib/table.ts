/** Makes the table of a resource, or checks it. */
import { type Column, define, type Resource, typeOf } from './columns.ts';
import { ownCall, type Pool } from './pool.ts';
import { codeOf, StartError } from './problem.ts';
import { literal, quote, Sql, sql } from './sql.ts';

/** A column of the table. */
type Existing = Record<'name' | 'type', string> &
  Record<'unique' | 'required' | 'notNull', boolean>;

/** A difference between declaration and table; `ddl` removes it where the service may do so. */
type Difference = { fault: string; ddl?: string | false | undefined };

/**
 * Creates the table or its missing columns under an advisory lock; issues no DDL when nothing is
 * missing. Throws StartError that names the differences, Problem while the database is unavailable.
 */
export async function ensureTable(resource: Resource, pool: Pool): Promise<void> {
  const { table, notNull } = resource;
  for (const altered of [false, true]) {
    const found = (await pool.json(describeTable(table))) as Existing[];
    for (const column of found) if (column.notNull) notNull.add(column.name);
    const differences = compareTable(resource, found);
    if (differences.length === 0) return;
    const message = `table ${table}: ${differences.map(({ fault }) => fault).join('; ')}`;
    if (altered || !differences.every(({ ddl }) => ddl)) throw new StartError(message);
    const lock = `select pg_advisory_xact_lock(hashtext(${literal(table)}))`;
    const batch = [lock, ...differences.map(({ ddl }) => ddl)].join('; '); // one transaction
    await pool.run('write', ownCall(), new Sql(batch)).catch((error) => {
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

function compareTable(resource: Resource, found: Existing[]): Difference[] {
  const { table, key, names, columns } = resource;
  const definitions = Object.entries(columns).map(([name, column]) => define(name, column));
  const all = [`${quote(key)} uuid primary key`, ...definitions].join(', ');
  const create = `create table if not exists ${quote(table)} (${all})`;
  if (found.length === 0) return [{ fault: 'is missing', ddl: create }];
  const undeclared = found.filter(({ name, required }) => required && !names.includes(name));
  return [
    ...names.flatMap((name): Difference[] => {
      const [type, column] = [typeOf(resource, name), columns[name]];
      const existing = found.find((one) => one.name === name);
      const add = column && isOptional(column) && define(name, column);
      const ddl = add && `alter table ${quote(table)} add column if not exists ${add}`;
      if (!existing) return [{ fault: `${name} is missing`, ddl }];
      const fault = `${name} is ${existing.type}, declared ${type}`;
      if (existing.type !== type) return [{ fault }];
      const indexed = existing.unique || (name !== key && !column?.unique);
      return indexed ? [] : [{ fault: `${name} has no unique index` }];
    }),
    ...undeclared.map(({ name }) => ({ fault: `${name} is required by the table, not declared` })),
  ];
}

/** Whether existing rows get a value when the column is added. */
function isOptional({ nullable, generated, default: initial }: Column): boolean {
  return Boolean(nullable || generated || initial !== undefined);
}
