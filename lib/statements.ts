/** The statements that write or find rows of one table, as SQL. The table is `t`, given rows are `i`. */
import { kindOf, type Resource, type Row, typeOf } from './columns.ts';
import { codeOf } from './problem.ts';
import { arrayLiteral, identifier, identifiers, join, raw, type Sql, sql, where } from './sql.ts';

/** Versions (xmin) of If-Match and If-None-Match; `*` is any. */
export type Preconditions = { match?: Versions; noneMatch?: Versions };
type Versions = string[] | '*' | undefined;

/** PostgreSQL's transaction id of the last change: the version of a row. */
const VERSION = sql`t.xmin`;

export function statementsFor(resource: Resource) {
  const { names, settable, columns } = resource;
  const [table, key] = [identifier(resource.table), identifier(resource.key)];
  const owner = resource.owner && identifier(resource.owner);
  const deletion = sql`delete from ${table} t`;
  /** The columns that a statement has values for. */
  const inputs = [resource.key, ...settable, ...(resource.owner ? [resource.owner] : [])];

  /** The test for one key or several; an engine of several nodes asks one of them for a lone key. */
  function isKey(...keys: string[]): Sql {
    if (keys.length === 1) return sql`t.${key} = ${keys[0]}`;
    return sql`t.${key} = any(${arrayLiteral(keys)}::uuid[])`;
  }

  /** The test that a row is the caller's. */
  function isOwnedBy(sub: string): Sql[] {
    return owner ? [sql`t.${owner} = ${sub}`] : [];
  }

  /** The test that each key is its caller's. */
  function areOwnedBy(keys: string[], subs: string[]): Sql[] {
    const arrays = sql`${arrayLiteral(keys)}::uuid[], ${arrayLiteral(subs)}::text[]`;
    return owner ? [sql`(t.${key}, t.${owner}) in (select * from unnest(${arrays}))`] : [];
  }

  function find(keys: string[], shown: Sql[]): Sql {
    return sql`select ${join([...shown, VERSION])} from ${table} t where ${isKey(...keys)}`;
  }

  function insert(rows: Row[]): Sql {
    const values = names.map((name) => {
      const { generated, default: initial } = columns[name] ?? {};
      const given = sql`i.${identifier(name)}`;
      if (generated) return raw(generated());
      return typeof initial === 'function' ? sql`coalesce(${given}, ${raw(initial())})` : given;
    });
    return sql`insert into ${table} as t (${identifiers(names)})
      select ${join(values)} from ${tableOf(inputs, rows)}`;
  }

  /** Inserts rows; where the key exists, sets `set`: never the key, nothing in another caller's row. */
  function upsert(rows: Row[], set: string[], tests: Sql[] = []): Sql {
    const changed = set.filter((name) => settable.includes(name)).map(identifier);
    const mine = owner ? [sql`t.${owner} = excluded.${owner}`] : [];
    const changes = join(changed.map((name) => sql`${name} = excluded.${name}`));
    const update = sql`update set ${changes} ${where([...mine, ...tests])}`;
    const action = changed.length > 0 ? update : sql`nothing`;
    return sql`${insert(rows)} on conflict (${key}) do ${action}`;
  }

  /** Sets what the part has; a whole row also sets the rest to its defaults. */
  function update(part: Row, whole = false): Sql {
    const set = settable.flatMap((name) => {
      const { default: initial } = columns[name] ?? {};
      const preset = whole && typeof initial === 'function' ? [raw(initial())] : [];
      const value = Object.hasOwn(part, name) ? [textOf(name, part[name])] : preset;
      return value.map((one) => sql`${identifier(name)} = ${one}`);
    });
    return assign(set);
  }

  /** Sets in each row what its part has; `isSame` finds the part by key. */
  function updateEach(parts: Row[]): { action: Sql; isSame: Sql } {
    const having = (name: string) => parts.filter((part) => Object.hasOwn(part, name)).length;
    const named = settable.filter((name) => having(name) > 0);
    const partial = named.filter((name) => having(name) < parts.length);
    const set = named.map((name) => {
      const [column, has] = [identifier(name), identifier(`has ${name}`)];
      if (!partial.includes(name)) return sql`${column} = i.${column}`;
      return sql`${column} = case when i.${has} then i.${column} else t.${column} end`;
    });
    const given = tableOf([resource.key, ...named], parts, partial);
    return { action: sql`${assign(set)} from ${given}`, isSame: sql`t.${key} = i.${key}` };
  }

  /** Without an assignment, only the version of the row changes. */
  function assign(set: Sql[]): Sql {
    const first = identifier(settable[0] ?? '');
    return sql`update ${table} t set ${set.length > 0 ? join(set) : sql`${first} = t.${first}`}`;
  }

  /** The existing rows with the keys of the given ones, and whether they are equal. */
  function compare(rows: Row[], shown: Sql[]): Sql {
    const wanted = settable.map((name) => {
      const byDatabase = typeof columns[name]?.default === 'function';
      const column = identifier(name);
      return byDatabase ? sql`coalesce(i.${column}, t.${column})` : sql`i.${column}`;
    });
    const same = sql`row(${identifiers(settable, 't.')}) is not distinct from row(${join(wanted)})`;
    return sql`select ${join([...shown, VERSION, same])}
      from ${table} t join ${tableOf(inputs, rows)} on t.${key} = i.${key}`;
  }

  /** Rows as a table `i`: an array for each column, of a type without a length, which would truncate. */
  function tableOf(names: string[], rows: Row[], partial: string[] = []): Sql {
    const arrays = names.map((name) => {
      const values = rows.map((row) => textOf(name, row[name]));
      const type = typeOf(resource, name).replace(/\(.*\)/, '');
      return sql`${arrayLiteral(values)}::${raw(type)}[]`;
    });
    const has = (name: string) => arrayLiteral(rows.map((row) => Object.hasOwn(row, name)));
    const flags = partial.map((name) => sql`${has(name)}::boolean[]`);
    const all = identifiers([...names, ...partial.map((name) => `has ${name}`)]);
    return sql`unnest(${join([...arrays, ...flags])}) i(${all})`;
  }

  /** A value as PostgreSQL reads it; null is JSON where the column is of JSON and not nullable. */
  function textOf(name: string, value: unknown): string | null {
    const isJson = kindOf(typeOf(resource, name)) === 'json';
    const isNull = value === null && !(isJson && !columns[name]?.nullable);
    if (isNull || value === undefined) return null;
    return isJson ? JSON.stringify(value) : String(value);
  }

  const tests = { isKey, isOwnedBy, areOwnedBy };
  const writes = { deletion, insert, upsert, update, updateEach };
  return { table, inputs, ...tests, find, ...writes, compare, textOf };
}

export function hasVersion({ match, noneMatch }: Preconditions): Sql[] {
  const tests = noneMatch === '*' ? [sql`false`] : [];
  if (Array.isArray(match)) tests.push(sql`t.xmin::text = any(${arrayLiteral(match)}::text[])`);
  if (Array.isArray(noneMatch))
    tests.push(sql`t.xmin::text <> all(${arrayLiteral(noneMatch)}::text[])`);
  return tests;
}

/** A write that answers columns, version and `created`; if one of `broken` is true, 1 / 0 undoes it. */
export function returning(action: Sql, shown: Sql[], created = sql`false`, broken: Sql[] = []) {
  const columns = [...shown, VERSION, created];
  if (broken.length === 0) return sql`${action} returning ${join(columns)}`;
  const named = columns.map((one, at) => sql`${one} as ${identifier(`c${at}`)}`);
  return sql`with changed as (${action} returning ${join(named)})
    select *, 1 / (case when ${join(broken, ' or ')} then 0 else 1 end) from changed`;
}

/** For catch(): no result where one of `broken` was true; no other statement divides. */
export function ifBroken(error: unknown): undefined {
  if (codeOf(error) !== '22012') throw error;
}

/** What must not be true of the changed rows: not exactly one, or more than `most`. */
export function brokenBy(single: boolean, most = Infinity): Sql[] {
  const rows = sql`(select count(*) from changed)`;
  const tests = single ? [sql`${rows} <> 1`] : [];
  return most === Infinity ? tests : [...tests, sql`${rows} > ${most}`];
}
