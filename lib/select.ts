/** A parsed query string as SQL. The table is `t` in every statement. */
import type { Resource } from './columns.ts';
import { type Filter, groupedBy, type Member, OPERATORS, type Query } from './dialect.ts';
import { bodyOf, type Format, type Values } from './rows.ts';
import { identifier, join, literal, raw, type Sql, sql, where } from './sql.ts';
import { type JsonKind, kindOf, typeOf } from './types.ts';

/** The members of `select`, or all columns: how each is written, and its expression over `t`. */
export function shownOf(resource: Resource, select?: Member[]) {
  const members = select ?? resource.names.map((name): Member => ({ name, column: name }));
  const shown = members.map((member) => showOne(resource, member));
  return { fields: shown.map(({ field }) => field), columns: shown.map(({ column }) => column) };
}

function showOne(resource: Resource, { name, column = '', inner, aggregate, cast }: Member) {
  const as = (of: Sql, type?: string) => (type ? sql`${of}::${raw(type)}` : of);
  const plain = column ? as(columnOf(column), inner) : sql`*`;
  const value = as(aggregate ? sql`${raw(aggregate)}(${plain})` : plain, cast);
  const isNumber = /^(count|sum|avg)$/.test(aggregate ?? '');
  const kind = kindOf(cast ?? (isNumber ? 'numeric' : (inner ?? typeOf(resource, column))));
  return { field: { name, kind }, column: isPrinted(kind) ? sql`to_json(${value})` : value };
}

/**
 * `select columns from …` of a list. The limit is no bound value: PostgreSQL would plan each
 * execution anew for a tenth of the table. `tests` are conditions besides the filters.
 */
export function selectOf(
  resource: Resource,
  query: Query,
  columns: Sql[],
  tests: Sql[],
  limit?: number,
): Sql {
  const { filters, order, offset } = query;
  const table = identifier(resource.table);
  const groups = groupedBy(query)?.map(columnOf) ?? [];
  const orders = order.map(({ column, descending, nullsFirst }) => {
    // Without nulls in the column any index on it has the order.
    const nulls = resource.notNull.has(column) ? '' : ` nulls ${nullsFirst ? 'first' : 'last'}`;
    return sql`${columnOf(column)} ${raw((descending ? 'desc' : 'asc') + nulls)}`;
  });
  const sorted = (what: Sql, most?: number) => sql`select ${what}
    ${join(groups, ', ', 'group by ')} ${join(orders, ', ', 'order by ')}
    ${most === undefined ? sql`` : sql`limit ${raw(String(most))}`}`;
  const parts = query.after ? keyset(resource, order, query.after) : [[]];
  const all = [...tests, ...filters.map(condition)];
  const rows = parts.map((part) => sql`${table} t ${where([...all, ...part])}`);
  const most = limit === undefined ? undefined : limit + offset;
  const each = rows.map((one) => sql`(${sorted(sql`* from ${one}`, most)})`);
  const from = rows.length > 1 ? sql`(${join(each, ' union all ')}) t` : rows[0];
  const skip = offset === 0 ? sql`` : sql`offset ${offset}`;
  return sql`${sorted(sql`${join(columns)} from ${from}`, limit)} ${skip}`;
}

/** `select count(*)` of all rows of a list, whatever its page. */
export function countOf(resource: Resource, query: Query, tests: Sql[]): Sql {
  const { after, ...whole } = query;
  const rows = { ...whole, order: [], offset: 0 };
  const counting = selectOf(resource, rows, [sql`count(*)`], tests);
  return groupedBy(query) ? sql`select count(*) from (${counting}) t` : counting;
}

/** A page of at most `limit` rows; `count`: whether the number of all rows is wanted. */
export type Wanted = { limit: number; count: boolean; format: Format };

/** One page of a list in the wanted format: whether more rows follow, and the cursor to them. */
export type Page = { rows: number; body: string; more: boolean; next: string; total?: number };

/**
 * A page as a statement, and what its result becomes. One row more than wanted shows whether there
 * are more; a total is in a column of each row.
 */
export function planPage(resource: Resource, query: Query, wanted: Wanted, tests: Sql[]) {
  const { limit, count, format } = wanted;
  const { fields, columns } = shownOf(resource, query.select);
  const groups = groupedBy(query); // they have no cursor
  const apart =
    Boolean(query.select) || query.order.some(({ column }) => !isPlain(resource, column));
  if (apart && !groups) columns.push(...query.order.map(({ column }) => columnOf(column)));
  const named = [...columns, sql`true`].map((one, at) => sql`${one} as ${identifier(`c${at}`)}`);
  const page = selectOf(resource, query, count ? named : columns, tests, limit + 1);
  const total = count && countOf(resource, query, tests);
  const statement = total
    ? sql`select p.*, total.count from (${total}) total left join (${page}) p on true`
    : page;

  const toPage = (found: Values[]): Page => {
    const rows = count && found[0]?.at(-2) === null ? [] : found.slice(0, limit); // only the total
    const last = found.length > limit ? rows.at(-1) : undefined;
    return {
      rows: rows.length,
      body: bodyOf(format, fields, rows),
      more: Boolean(last),
      next:
        last && !groups ? cursorOf(resource, query, last, apart ? fields.length : undefined) : '',
      ...(count && { total: Number(found[0]?.at(-1)) }),
    };
  };
  return { fields, statement, toPage };
}

/** The cursor after a row: the values of the order, which are in the row or from `start`, in base64url. */
function cursorOf({ names }: Resource, { order }: Query, row: Values, start?: number): string {
  const values = order.map(
    ({ column }, at) => row[start === undefined ? names.indexOf(column) : start + at],
  );
  return Buffer.from(JSON.stringify(values)).toString('base64url');
}

/** Whether to_json() prints the values of an answer. */
function isPrinted(kind: JsonKind): boolean {
  return kind === 'time' || kind === 'array';
}

/** Whether the row of an answer has the column as PostgreSQL prints it. */
function isPlain({ columns }: Resource, name: string): boolean {
  return !isPrinted(kindOf(columns[name]?.type ?? 'time'));
}

/** A column, or a JSON path in one: `name->0->>key`, whose keys have no quotes. */
function columnOf(place: string): Sql {
  if (!place.includes('->')) return sql`t.${identifier(place)}`;
  const [name = '', ...path] = place.split(/(?=->)/);
  const steps = path.map((step) =>
    step.replace(/[^>]+$/, (key) => (/^\d+$/.test(key) ? key : literal(key))),
  );
  return sql`(t.${identifier(name)}${raw(steps.join(''))})`;
}

export function condition(filter: Filter): Sql {
  if ('not' in filter) return sql`not (${condition(filter.not)})`;
  if ('tree' in filter) return sql`(${join(filter.branches.map(condition), ` ${filter.tree} `)})`;
  const { operator, modifier, value } = filter;
  const [left, by] = [columnOf(filter.column), raw(OPERATORS.get(operator) ?? '')];
  if (operator === 'is') return sql`${left} is ${raw(value.replace('_', ' '))}`;
  if (operator === 'in') return sql`${left} ${by}(${value})`;
  const language = modifier ? sql`${modifier}::text::regconfig, ` : sql``;
  if (operator.endsWith('fts'))
    return sql`to_tsvector(${language}${left}) @@ ${by}(${language}${value})`;
  return modifier ? sql`${left} ${by} ${raw(modifier)}(${value})` : sql`${left} ${by} ${value}`;
}

/**
 * The tests for the rows after the one with the given values, in the given order (keyset pagination);
 * in two parts where nulls of the first column follow, because no index can use an `or`. The bound
 * of the first column follows from the other test: an index can only use it alone.
 */
function keyset({ notNull }: Resource, order: Query['order'], values: Values): Sql[][] {
  const tests = order.map(({ column, descending, nullsFirst }, at) => {
    const [left, value = null] = [columnOf(column), values[at]];
    const isNull = sql`${left} is null`;
    if (value === null)
      return { beyond: nullsFirst ? [sql`not ${isNull}`] : [], nulls: [], same: isNull, bound: [] };
    const beyond = sql`${left} ${raw(descending ? '<' : '>')}`;
    const nulls = notNull.has(column) || nullsFirst ? [] : [isNull];
    const same = sql`${left} = ${value}`;
    return { beyond: [sql`${beyond} ${value}`], nulls, same, bound: [sql`${beyond}= ${value}`] };
  });
  const either = ([one = sql`false`, ...more]: Sql[]) =>
    more.length > 0 ? sql`(${join([one, ...more], ' or ')})` : one;
  const after = tests.reduceRight<Sql[]>((rest, { beyond, nulls, same }, at) => {
    const equal = rest.length > 0 ? [sql`(${same} and ${either(rest)})`] : [];
    return [...beyond, ...(at > 0 ? nulls : []), ...equal];
  }, []);
  const { bound = [], nulls = [] } = tests[0] ?? {};
  return [[...(tests.length > 1 ? bound : []), either(after)], ...nulls.map((isNull) => [isNull])];
}
