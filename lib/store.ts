/** The statements on one table; requests that arrive together share one. */
import type { Resource, Row } from './columns.ts';
import { badLine, type CsvReader, csvLine } from './csv.ts';
import { type Filter, isGrouped, type Member, type Query } from './dialect.ts';
import { type Grouping, group, share } from './group.ts';
import { type Call, type Kind, ownCall, type Pool, type Result } from './pool.ts';
import { clientLeft, codeOf, notOne, Problem, tooMany } from './problem.ts';
import { arrayOf, condition, cursorOf, jsonOf, memberValue, rowsOf } from './select.ts';
import {
  arrayLiteral,
  identifier,
  identifiers,
  join,
  literal,
  quote,
  raw,
  Sql,
  sql,
  where,
} from './sql.ts';

/** A row as JSON text, with its version in the database (xmin) for the ETag. */
export type Stored = { body: string; version: string };

/**
 * What a write did. `created`: some of its rows are new. For a create, `taken`: a key existed;
 * `same`: every existing row equals the wanted one. `found`: a row has the key.
 */
export type Written = Stored &
  Record<'created' | 'taken' | 'same' | 'found', boolean> & { rows: number };

/** A write that would break these changes nothing: exactly one row, at most `most` rows. */
export type Terms = { select?: Member[] | undefined; single?: boolean; most?: number | undefined };

/** What a page must have: rows at most, their bodies (not for HEAD), the number of all rows. */
export type Wanted = { limit: number; body: boolean; count: boolean };

/** One page of a list: its rows as a JSON array, whether more follow, the cursor after it. */
export type Page = { rows: number; body: Buffer; more: boolean; next: string; total?: number };

/** The versions of If-Match; `*` and undefined allow any. */
export type Versions = string[] | '*' | undefined;

/** A request for one row, and one for a page. */
type Ask = { uuid: string; call: Call; row?: Row };
type PageAsk = { query: Query; wanted: Wanted; statement: Sql; call: Call };
/** A value as the bytes that PostgreSQL sent. */
type Raw = Buffer | null | undefined;

const RETURNING = sql`returning t.*, t.xmin::text as "#"`;
const GROUPS = { most: 128, width: 2 };
const MAX_ROWS = 2 ** 31; // more than any statement can change
const LINE = ', \n '; // what json_agg() puts between two rows
/** SQLSTATE classes of errors that one row of a group may cause, and that undo the statement. */
const ONE_ROW = /^(2[^58]|4|55)/;

export class Store {
  private resource: Resource;
  private pool: Pool;
  private table: Sql;
  private key: Sql;
  private all: Sql;
  private settable: Sql;
  private values: Sql;
  private none: Sql; // a row of the table's type; null::name could be a type of that name
  private identity: Sql;
  private reads = this.together('read', (asks: Ask[], since) => this.readAll(asks, since));
  private creates = this.together('create', (asks: Ask[], since) => this.createAll(asks, since));
  private replaces = this.together('replace', (asks: Ask[], since) => this.replaceAll(asks, since));
  private removes = this.together('delete', (asks: Ask[], since) => this.removeAll(asks, since));
  private pages = share(
    this.grouping('list', (asks: PageAsk[], since) => this.readPages(asks, since)),
  );

  constructor(resource: Resource, pool: Pool) {
    this.resource = resource;
    this.pool = pool;
    this.table = identifier(resource.table);
    this.key = identifier(resource.key);
    this.all = identifiers(resource.names);
    this.settable = identifiers(resource.settable);
    const valueFor = (name: string) =>
      resource.columns[name]?.generated?.() ?? inputOf(resource, name);
    this.values = new Sql(resource.names.map(valueFor).join(', '));
    this.none = sql`(select t from ${this.table} t where false)`;
    const { owner } = resource;
    this.identity = owner
      ? sql`t.${this.key} || ' ' || t.${identifier(owner)}`
      : sql`t.${this.key}::text`;
  }

  // Reads

  read(uuid: string, call: Call): Promise<Stored | undefined> {
    return this.admit(call, () => this.reads({ uuid, call }));
  }

  /** One page. Equal ones that are requested at the same time share one statement. */
  page(query: Query, wanted: Wanted, call: Call): Promise<Page> {
    const statement = this.pageStatement(query, wanted, call);
    const key = JSON.stringify(statement);
    return this.admit(call, () => this.pages(key, { query, wanted, statement, call }));
  }

  /** All rows of a list, in batches: as JSON texts, or as CSV lines with a header. */
  async *stream(query: Query, csv: boolean, call: Call): AsyncGenerator<string[]> {
    this.checkCaller(call);
    const { resource } = this;
    const { select = resource.names.map((name): Member => ({ name, column: name })) } = query;
    const values = select.map(
      (member, at) => sql`${memberValue(query, member, at)} as ${identifier(`c${at}`)}`,
    );
    const shown = csv ? join(values) : sql`${jsonOf(query, resource)} as body`;
    const { limit = null, offset } = query;
    const rows = rowsOf(resource, query, { limit, offset, tests: this.ownedBy(call) });
    const lineOf = (one: Result) => (csv ? csvLine(Object.values(one)) : (one.body ?? ''));
    let header = csv ? [csvLine(select.map(({ name }) => name))] : [];
    for await (const batch of this.pool.stream(sql`select ${shown} from ${rows} t`)) {
      yield [...header, ...batch.map(lineOf)];
      header = [];
    }
    if (header.length > 0) yield header; // after the statement began: until then it may fail
  }

  // Writes

  /** Inserts the row; does nothing when its key exists. */
  create(row: Row, call: Call): Promise<Written> {
    const ask = this.askFor(row, call);
    return this.admit(call, async () => {
      for (let tries = 2; ; tries -= 1) {
        const made = await this.creates(ask); // no row: another request inserted its key meanwhile
        if (made.rows > 0 || tries === 0) return made;
      }
    });
  }

  /** Inserts the row, or replaces the one with its key. */
  replace(row: Row, call: Call): Promise<Written> {
    return this.admit(call, () => this.replaces(this.askFor(row, call)));
  }

  /** Inserts all rows, or none when a key exists. */
  createMany(rows: Row[], terms: Terms, call: Call): Promise<Written> {
    return this.write('keyed', this.creation(this.withOwner(rows, call), true), terms, call);
  }

  /** Inserts rows; of those whose key exists, replaces the `set` columns, or nothing. */
  upsert(rows: Row[], set: string[], terms: Terms, call: Call): Promise<Written> {
    return this.write('write', this.replacement(this.withOwner(rows, call), set), terms, call);
  }

  /** Sets what the part has, in the statement itself (RFC 7396). */
  merge(uuid: string, part: Row, versions: Versions, call: Call): Promise<Written> {
    const set = this.assignments(sql`${JSON.stringify(part)}`);
    const action = sql`update ${this.table} t set ${set}`;
    return this.change(action, this.only(uuid, versions), {}, call, uuid);
  }

  /** Sets the same part in all rows that pass the filters, or in each of the given rows its own. */
  mergeMany(part: Row | Row[], filters: Filter[], terms: Terms, call: Call): Promise<Written> {
    const json = sql`${JSON.stringify(part)}`;
    const tests = filters.map(condition);
    if (!Array.isArray(part)) {
      const action = sql`update ${this.table} t set ${this.assignments(json)}`;
      return this.change(action, tests, terms, call);
    }
    const from = sql`${this.assignments(sql`i.value`)} from json_array_elements(${json}) i`;
    const own = sql`t.${this.key} = (i.value->>${this.resource.key})::uuid`;
    return this.change(sql`update ${this.table} t set ${from}`, [own, ...tests], terms, call);
  }

  remove(uuid: string, versions: Versions, call: Call): Promise<Written> {
    if (!Array.isArray(versions)) return this.admit(call, () => this.removes({ uuid, call }));
    const action = sql`delete from ${this.table} t`;
    return this.change(action, this.only(uuid, versions), {}, call, uuid);
  }

  removeMany(filters: Filter[], terms: Terms, call: Call): Promise<Written> {
    return this.change(sql`delete from ${this.table} t`, filters.map(condition), terms, call);
  }

  /**
   * Stores all rows of the CSV, or none. Its WHERE checks what COPY does not: a cast that fails names
   * the column. Throws 400 or 409 with line and column.
   */
  async copy(csv: CsvReader): Promise<void> {
    const tests = Object.entries(this.resource.columns).map(([column, { nullable, check }]) => {
      const fails = `(${check(quote(column))}) is ${nullable ? 'false' : 'not true'}`;
      const message = `${literal(`!${column}`)} || coalesce(left(${quote(column)}::text, 0), '')`;
      return `when ${fails} then (${message})::int is null`; // a constant would fail when planned
    });
    const into = `copy ${this.table.text} (${csv.columns.map(quote).join(', ')})`;
    const statement = `${into} from stdin (format csv) where case ${tests.join(' ')} else true end`;
    await this.pool.copy(statement, csv.lines).catch((error) => {
      throw badLine(this.resource, error);
    });
  }

  // Owners

  /** Throws 403 for a caller who cannot own rows. */
  private admit<T>(call: Call, answer: () => Promise<T>): Promise<T> {
    this.checkCaller(call);
    return this.pool.admit(call, answer);
  }

  private checkCaller({ sub }: Call): void {
    const { owner = '', columns } = this.resource;
    const pattern = columns[owner]?.owner;
    const hint = `The sub of the token has to match ${pattern?.source}.`;
    if (pattern && !pattern.test(sub))
      throw new Problem(403, '42501', "The token's sub cannot own rows.", hint);
  }

  private askFor(row: Row, call: Call): Ask {
    return {
      uuid: String(row[this.resource.key]),
      row: this.withOwner([row], call)[0] ?? row,
      call,
    };
  }

  /** The rows with their caller as owner; a body cannot name one. */
  private withOwner(rows: Row[], { sub }: Call): Row[] {
    const { owner } = this.resource;
    return owner ? rows.map((row) => ({ ...row, [owner]: sub })) : rows;
  }

  /** The test that a row belongs to the caller. */
  private ownedBy({ sub }: Call): Sql[] {
    const { owner } = this.resource;
    return owner ? [sql`t.${identifier(owner)} = ${sub}`] : [];
  }

  private idOf({ uuid, call }: Ask): string {
    return this.resource.owner ? `${uuid} ${call.sub}` : uuid;
  }

  // Groups

  private together<O>(work: string, run: Grouping<Ask, O>['run']) {
    const keyOf = work === 'read' ? () => undefined : ({ uuid }: Ask) => uuid;
    return group({ ...this.grouping(work, run), keyOf });
  }

  private grouping<I extends { call: Call }, O>(work: string, run: Grouping<I, O>['run']) {
    return {
      ...GROUPS,
      refuse: ({ call }: I) => call.outgoing?.destroyed && clientLeft(),
      isApart: (error: unknown) => ONE_ROW.test(codeOf(error)),
      observe: (requests: number) => this.pool.observe(work, requests),
      run,
    };
  }

  private async readAll(asks: Ask[], since: number): Promise<(Stored | undefined)[]> {
    const { table, identity, resource } = this;
    const statement = sql`
      select ${identity} as id, t.xmin::text as version, ${jsonOf({}, resource)} as body
      from ${table} t where ${this.oneOf(asks)}`;
    const found = await this.pool.run('read', ownCall(), statement, since);
    const rows = new Map(found.map((one) => [one.id, one as Stored]));
    return asks.map((ask) => rows.get(this.idOf(ask)));
  }

  private createAll(asks: Ask[], since: number): Promise<Written[]> {
    return this.writeAll('keyed', asks, this.creation(sortedRows(asks), false), since);
  }

  private replaceAll(asks: Ask[], since: number): Promise<Written[]> {
    const ctes = this.replacement(sortedRows(asks), this.resource.names);
    return this.writeAll('write', asks, ctes, since);
  }

  private removeAll(asks: Ask[], since: number): Promise<Written[]> {
    const removed = sql`delete from ${this.table} t where ${this.oneOf(asks)}`;
    const ctes = sql`changed as (${removed} ${RETURNING}, null::boolean as flag)`;
    return this.writeAll('write', asks, ctes, since);
  }

  /** Runs the CTEs for a group; for each ask, what happened to its row. */
  private async writeAll(kind: Kind, asks: Ask[], ctes: Sql, since: number): Promise<Written[]> {
    const call = ownCall();
    const statement = sql`
      with ${ctes} select ${this.identity} as id, "#" as version,
        ${jsonOf({}, this.resource)} as body, flag
      from changed t`;
    const results = await this.pool.run(kind, call, statement, since);
    for (const ask of asks) ask.call.repeated ||= call.repeated;
    const rows = new Map(results.map((one) => [one.id, one]));
    return asks.map((ask) => writtenOf(rows.get(this.idOf(ask))));
  }

  /** The test that a row was asked for, by its owner; one plan for any number of asks. */
  private oneOf(asks: Ask[]): Sql {
    const uuids = arrayLiteral(asks.map(({ uuid }) => uuid));
    const keyed = sql`t.${this.key} = any((select ${uuids}::uuid[])::uuid[])`;
    const ids = arrayLiteral(asks.map((ask) => this.idOf(ask)));
    return this.resource.owner ? sql`${keyed} and ${this.identity} = any(${ids})` : keyed;
  }

  // Statements

  /** `changed` has the new rows, and the existing ones with a flag: whether they equal the wanted. */
  private creation(rows: Row[], allOrNone: boolean): Sql {
    const { table, key, all, resource } = this;
    const { settable, owner } = resource;
    const free = sql`where not exists (select from existing)`;
    const keyed = sql`t.${key} = i.${key}`;
    const mine = owner ? sql`${keyed} and t.${identifier(owner)} = i.${identifier(owner)}` : keyed;
    const wanted = settable.map((name) => inputOf(resource, name, `t.${quote(name)}`)).join(', ');
    return sql`
      input as (select * from json_populate_recordset(${this.none}, ${JSON.stringify(rows)})),
      existing as (
        select t.*, row(${identifiers(settable, 't.')}) is not distinct from row(${raw(wanted)}) as flag
        from input i cross join lateral ( -- so that the planner always uses the index
          select t.*, t.xmin::text as "#" from ${table} t where ${mine} limit 1
        ) t
      ),
      made as (
        insert into ${table} as t (${all}) select ${this.values} from input i
        ${allOrNone ? free : sql`on conflict (${key}) do nothing`} ${RETURNING}, null::boolean as flag
      ),
      changed as (select * from made union all select * from existing)`;
  }

  /** `changed` has the written rows, with a flag: whether they are new. */
  private replacement(rows: Row[], columns: string[]): Sql {
    const { table, key, all, resource } = this;
    const set = columns.filter((name) => name === resource.key || resource.settable.includes(name));
    const owner = identifier(resource.owner ?? resource.key); // nobody replaces another's row
    const update = sql`update set (${identifiers(set)}) = row(${identifiers(set, 'excluded.')})
      where t.${owner} = excluded.${owner}`;
    return sql`changed as (
      insert into ${table} as t (${all})
      select ${this.values} from json_populate_recordset(${this.none}, ${JSON.stringify(rows)}) i
      on conflict (${key}) do ${set.length > 0 ? update : sql`nothing`} ${RETURNING}, t.xmax = 0 as flag
    )`;
  }

  private assignments(json: Sql): Sql {
    return sql`(${this.settable}) = (select ${this.settable} from json_populate_record(t, ${json}))`;
  }

  private only(uuid: string, versions: Versions): Sql[] {
    const version = sql`t.xmin::text = any(${`{${versions}}`})`;
    return [sql`t.${this.key} = ${uuid}`, ...(Array.isArray(versions) ? [version] : [])];
  }

  private change(action: Sql, tests: Sql[], terms: Terms, call: Call, uuid?: string) {
    const mine = where([...tests, ...this.ownedBy(call)]);
    const changed = sql`${action} ${mine} ${RETURNING}, null::boolean as flag`;
    return this.write('write', sql`changed as (${changed})`, terms, call, uuid);
  }

  /** Runs the CTEs, whose `changed` has the written rows; a broken term fails the statement. */
  private async write(
    kind: Kind,
    ctes: Sql,
    terms: Terms,
    call: Call,
    uuid?: string,
  ): Promise<Written> {
    const { single = false, most = MAX_ROWS } = terms;
    const broken = sql`count(*) > ${most} or (${single} and count(*) <> 1)`;
    const same = where([sql`t.${this.key} = ${uuid ?? null}`, ...this.ownedBy(call)]);
    const found = sql`(select count(*) from ${this.table} t ${same})`;
    const statement = sql`
      with ${ctes}
      select count(*) as rows, string_agg(${jsonOf(terms, this.resource)}, ',') as body,
        min("#") as version, bool_and(flag) as every, bool_or(flag) as flag,
        ${uuid ? found : sql`null`} as found,
        case when ${broken} then ('!' || count(*))::int end as term
      from changed t`;
    const answer = this.admit(call, () => this.pool.run(kind, call, statement));
    const [result] = await answer.catch((error) => {
      const rows = Number(/"!(\d+)"/.exec(error.message)?.[1]);
      if (codeOf(error) !== '22P02' || Number.isNaN(rows)) throw error;
      throw single && rows !== 1 ? notOne(rows) : tooMany(rows);
    });
    return writtenOf(result);
  }

  /** Equal asks share a page; its rows stay the bytes that PostgreSQL sent. */
  private async readPages(asks: PageAsk[], since: number): Promise<Page[]> {
    const [{ query, wanted, statement }] = asks as [PageAsk];
    const results = await this.pool.run('read', ownCall(), statement, since, true);
    const [count, total, next, bytes] = Object.values(results[0] ?? {}) as unknown as Raw[];
    const found = Number(count);
    const beyond = found > wanted.limit;
    const more = beyond && wanted.limit > 0;
    const body = beyond ? withoutLast(bytes) : bytes;
    const page = {
      rows: beyond ? wanted.limit : found,
      body: body ?? Buffer.from('[]'),
      more,
      next: more ? nextCursor(query, body, next) : '',
      ...(wanted.count && { total: Number(total) }),
    };
    return asks.map(() => page);
  }

  /** One row more than wanted shows whether there are more. */
  private pageStatement(query: Query, { limit, body, count }: Wanted, call: Call): Sql {
    const { after, ...whole } = query;
    const tests = this.ownedBy(call);
    const inBody = isGrouped(query) || (body && !query.select); // then the cursor is read from there
    const values = query.order.map(({ column }) => sql`t.${identifier(column)}::text`);
    const next = inBody ? sql`null` : sql`(array_agg(json_build_array(${join(values)})))[${limit}]`;
    const all = rowsOf(this.resource, whole, { limit: null, offset: 0, tests });
    const page = rowsOf(this.resource, query, { limit: limit + 1, offset: query.offset, tests });
    return sql`
      select count(*), ${count ? sql`(select count(*) from ${all} t)` : sql`null`},
        ${next}, ${body ? arrayOf(query, this.resource) : sql`null`}
      from ${page} t`;
  }
}

/** By key, so that two groups lock their rows in the same order. */
function sortedRows(asks: Ask[]): Row[] {
  const sorted = asks.toSorted((a, b) => (a.uuid < b.uuid ? -1 : 1));
  return sorted.map(({ row = {} }) => row);
}

/** A column of the row `i`; `instead` when it is absent and the default is SQL. */
function inputOf({ columns }: Resource, name: string, instead?: string): string {
  const initial = columns[name]?.default;
  if (typeof initial !== 'function') return `i.${quote(name)}`;
  return `coalesce(i.${quote(name)}, ${instead ?? initial()})`;
}

function writtenOf(result: Result = {}): Written {
  const { rows = result.id ? 1 : 0, body, version, flag, every = flag, found } = result;
  return {
    rows: Number(rows),
    body: body ?? '',
    version: version ?? '',
    created: flag === 't',
    taken: flag !== null,
    same: every === 't',
    found: found === '1',
  };
}

/** The array without its last row, in place. */
function withoutLast(array: Raw): Raw {
  const end = array?.lastIndexOf(LINE) ?? -1;
  if (!array || end < 0) return undefined;
  array[end] = 0x5d; // "]"
  return array.subarray(0, end + 1);
}

/** The order's values in the last row of a page; groups have no cursor. */
function nextCursor(query: Query, body: Raw, next: Raw): string {
  if (isGrouped(query)) return '';
  if (next) return next.toString('base64url');
  if (!body) return cursorOf(query, {});
  const at = body.lastIndexOf(LINE);
  const start = at < 0 ? 1 : at + LINE.length;
  return cursorOf(query, JSON.parse(body.toString('utf8', start, body.length - 1)));
}
