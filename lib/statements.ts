/** The statements that write or find rows of one table, as SQL. The table is `t`, given rows are `i`. */
import { kindOf, type Resource, type Row, typeOf } from './columns.ts';
import {
  arrayLiteral,
  identifier,
  identifiers,
  join,
  raw,
  type Sql,
  sql,
  toText,
  where,
} from './sql.ts';

/** Versions (xmin) of If-Match and If-None-Match; `*` is any. */
export type Preconditions = { match?: Versions; noneMatch?: Versions };
type Versions = string[] | '*' | undefined;

/** PostgreSQL's transaction id of the last change: the version of a row. */
export const VERSION = sql`t.xmin`;

export class Statements {
  readonly table: Sql;
  readonly deletion: Sql;
  private resource: Resource;
  private key: Sql;
  private keyType: Sql;
  /** The columns that a statement has values for. */
  readonly inputs: string[];

  constructor(resource: Resource) {
    const { key, owner, settable } = resource;
    this.resource = resource;
    this.table = identifier(resource.table);
    this.deletion = sql`delete from ${this.table} t`;
    this.key = identifier(key);
    this.keyType = raw(typeOf(resource, key));
    this.inputs = [key, ...settable, ...(owner ? [owner] : [])];
  }

  /** The test for one key or several; an engine of several nodes asks one of them for a lone key. */
  isKey(...keys: string[]): Sql {
    if (keys.length === 1) return sql`t.${this.key} = ${keys[0]}`;
    return sql`t.${this.key} = any(${arrayLiteral(keys)}::${this.keyType}[])`;
  }

  /** The test that a row is the caller's. */
  isOwnedBy(sub: string): Sql[] {
    const { owner } = this.resource;
    return owner ? [sql`t.${identifier(owner)} = ${sub}`] : [];
  }

  /** The test that each key is its caller's. */
  areOwnedBy(keys: string[], subs: string[]): Sql[] {
    const { owner } = this.resource;
    const arrays = sql`${arrayLiteral(keys)}::${this.keyType}[], ${arrayLiteral(subs)}::text[]`;
    return owner
      ? [sql`(t.${this.key}, t.${identifier(owner)}) in (select * from unnest(${arrays}))`]
      : [];
  }

  hasVersion({ match, noneMatch }: Preconditions): Sql[] {
    const tests = noneMatch === '*' ? [sql`false`] : [];
    if (Array.isArray(match)) tests.push(sql`t.xmin::text = any(${arrayLiteral(match)}::text[])`);
    if (Array.isArray(noneMatch))
      tests.push(sql`t.xmin::text <> all(${arrayLiteral(noneMatch)}::text[])`);
    return tests;
  }

  insert(rows: Row[]): Sql {
    const { names, columns } = this.resource;
    const values = names.map((name) => {
      const { generated, default: initial } = columns[name] ?? {};
      const given = sql`i.${identifier(name)}`;
      if (generated) return raw(generated());
      return typeof initial === 'function' ? sql`coalesce(${given}, ${raw(initial())})` : given;
    });
    return sql`insert into ${this.table} as t (${identifiers(names)})
      select ${join(values)} from ${this.rows(this.inputs, rows)}`;
  }

  /** Sets columns of the existing row: never the key, and nothing in another caller's row. */
  onConflict(target: string[], columns: string[], tests: Sql[] = []): Sql {
    const { settable, owner } = this.resource;
    const set = columns.filter((name) => settable.includes(name)).map(identifier);
    const mine = owner ? [sql`t.${identifier(owner)} = excluded.${identifier(owner)}`] : [];
    const changes = join(set.map((name) => sql`${name} = excluded.${name}`));
    const action = sql`update set ${changes} ${where([...mine, ...tests])}`;
    return sql`on conflict (${identifiers(target)}) do ${set.length > 0 ? action : sql`nothing`}`;
  }

  /** Sets what the part has; a whole row also sets the rest to its defaults. */
  update(part: Row, whole = false): Sql {
    const { settable, columns } = this.resource;
    const set = settable.flatMap((name) => {
      const { default: initial } = columns[name] ?? {};
      if (Object.hasOwn(part, name))
        return sql`${identifier(name)} = ${this.textOf(name, part[name])}`;
      return whole && typeof initial === 'function'
        ? sql`${identifier(name)} = ${raw(initial())}`
        : [];
    });
    return this.assign(set);
  }

  /** Sets in each row what its part has; `joined` finds the part by key. */
  updateEach(parts: Row[]): { action: Sql; joined: Sql[] } {
    const { key, settable } = this.resource;
    const has = (name: string) => parts.map((part) => Object.hasOwn(part, name));
    const named = settable.filter((name) => has(name).includes(true));
    const partial = named.filter((name) => has(name).includes(false));
    const set = named.map((name) => {
      const [column, given] = [identifier(name), identifier(`has ${name}`)];
      if (!partial.includes(name)) return sql`${column} = i.${column}`;
      return sql`${column} = case when i.${given} then i.${column} else t.${column} end`;
    });
    const flags = partial.map((name) => sql`${arrayLiteral(has(name))}::boolean[]`);
    const from = this.rows(
      [key, ...named],
      parts,
      partial.map((name) => `has ${name}`),
      flags,
    );
    return {
      action: sql`${this.assign(set)} from ${from}`,
      joined: [sql`t.${this.key} = i.${this.key}`],
    };
  }

  /** Without an assignment, only the version of the row changes. */
  private assign(set: Sql[]): Sql {
    const first = identifier(this.resource.settable[0] ?? '');
    return sql`update ${this.table} t set ${set.length > 0 ? join(set) : sql`${first} = t.${first}`}`;
  }

  /** The existing rows with the keys of the given ones, and whether they are equal. */
  compare(rows: Row[], columns: Sql[]): Sql {
    const { settable, columns: declared } = this.resource;
    const wanted = settable.map((name) => {
      const byDatabase = typeof declared[name]?.default === 'function';
      const column = identifier(name);
      return byDatabase ? sql`coalesce(i.${column}, t.${column})` : sql`i.${column}`;
    });
    const same = sql`row(${identifiers(settable, 't.')}) is not distinct from row(${join(wanted)})`;
    return sql`select ${join([...columns, VERSION, same])}
      from ${this.table} t join ${this.rows(this.inputs, rows)} on t.${this.key} = i.${this.key}`;
  }

  /** Rows as a table `i`: one array for each column, whose type has no length that would truncate. */
  private rows(names: string[], rows: Row[], others: string[] = [], arrays: Sql[] = []): Sql {
    const columns = names.map((name) => {
      const values = rows.map((row) => this.textOf(name, row[name]));
      const type = typeOf(this.resource, name).replace(/\(.*\)/, '');
      return sql`${arrayLiteral(values)}::${raw(type)}[]`;
    });
    return sql`unnest(${join([...columns, ...arrays])}) i(${identifiers([...names, ...others])})`;
  }

  /** A value as PostgreSQL reads it; null is JSON where the column is of JSON and not nullable. */
  textOf(name: string, value: unknown): string | null {
    const isJson = kindOf(typeOf(this.resource, name)) === 'json';
    const isNull = value === null && !(isJson && !this.resource.columns[name]?.nullable);
    if (isNull || value === undefined) return null;
    return isJson ? JSON.stringify(value) : toText(value);
  }
}

/** A write that answers columns; a division by zero undoes it when one of `broken` is true. */
export function returning(action: Sql, columns: Sql[], broken: Sql[] = []): Sql {
  if (broken.length === 0) return sql`${action} returning ${join(columns)}`;
  const named = columns.map((one, at) => sql`${one} as ${identifier(`c${at}`)}`);
  return sql`with changed as (${action} returning ${join(named)})
    select *, 1 / (case when ${join(broken, raw(' or '))} then 0 else 1 end) from changed`;
}

/** The SQLSTATE of `returning`; no other statement divides. */
export const BROKEN = '22012';

/** What must not be true of the changed rows: not exactly one, or more than `most`. */
export function brokenBy(single: boolean, most: number | undefined): Sql[] {
  const rows = sql`(select count(*) from changed)`;
  const tests = single ? [sql`${rows} <> 1`] : [];
  return most === undefined ? tests : [...tests, sql`${rows} > ${most}`];
}
