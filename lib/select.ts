/** A parsed query string as SQL. The table is `t` in every statement. */
import { type Resource, toTextOrNull } from './columns.ts';
import {
  type Filter,
  FULL_TEXT,
  groupedBy,
  isGrouped,
  type Member,
  OPERATORS,
  type Order,
  type Query,
} from './dialect.ts';
import { identifier, identifiers, join, raw, type Sql, sql, where } from './sql.ts';

type Selection = Pick<Query, 'select'>;

/**
 * The rows of a list as a table in parentheses; groups have the columns c0, c1, … in the order of
 * `select`. The limit is no bound value: PostgreSQL would plan each execution anew for a tenth of
 * the table. `tests` are conditions besides the filters.
 */
export function rowsOf(
  { table, key, names }: Resource,
  query: Query,
  { limit, offset, tests }: { limit: number | null; offset: number; tests: Sql[] },
): Sql {
  const { select = [], filters, order, after } = query;
  const groups = isGrouped(query) ? groupedBy(query).map(columnOf) : [];
  const members = select.map((member, at) => sql`${expression(member)} as ${identifier(`c${at}`)}`);
  const all = [...tests, ...filters.map(condition)];
  if (after) all.push(keyset(key, order, after));
  return sql`(
    select ${isGrouped(query) ? join(members) : identifiers(names)}
    from ${identifier(table)} t ${where(all)}
    ${groups.length > 0 ? sql`group by ${join(groups)}` : sql``}
    ${order.length > 0 ? sql`order by ${join(order.map(direction))}` : sql``}
    ${limit === null ? sql`` : sql`limit ${raw(String(limit))}`}
    ${offset === 0 ? sql`` : sql`offset ${offset}`})`;
}

/** A row of rowsOf(), or of the table, as JSON text. Aliases are bound: a caller chose them. */
export function jsonOf(query: Selection, { names }: Resource): Sql {
  if (!query.select)
    return sql`(select row_to_json(r) from (select ${identifiers(names, 't.')}) r)::text`;
  const members = query.select.map(
    (member, at) => sql`${member.name}::text, ${memberValue(query, member, at)}`,
  );
  return sql`json_build_object(${join(members)})::text`;
}

/** The rows of rowsOf() as one JSON array; json_agg() also has ", \n " between rows. */
export function arrayOf(query: Selection, resource: Resource): Sql {
  if (!query.select) return sql`json_agg(t)`; // the fastest way
  return sql`'[' || string_agg(${jsonOf(query, resource)}, E', \n ') || ']'`;
}

/** The value of a member in a row of rowsOf(). */
export function memberValue(query: Selection, member: Member, at: number): Sql {
  return isGrouped(query) ? sql`t.${identifier(`c${at}`)}` : expression(member);
}

function columnOf(name: string): Sql {
  return sql`t.${identifier(name)}`;
}

function expression({ column, inner, aggregate, cast }: Member): Sql {
  const as = (of: Sql, type?: string) => (type ? sql`${of}::${raw(type)}` : of);
  const plain = column ? as(columnOf(column), inner) : sql`*`;
  return as(aggregate ? sql`${raw(aggregate)}(${plain})` : plain, cast);
}

function direction({ column, descending, nullsFirst }: Order): Sql {
  const suffix = `${descending ? 'desc' : 'asc'} nulls ${nullsFirst ? 'first' : 'last'}`;
  return sql`${columnOf(column)} ${raw(suffix)}`;
}

export function condition(filter: Filter): Sql {
  if ('not' in filter) return sql`not (${condition(filter.not)})`;
  if ('tree' in filter)
    return sql`(${join(filter.branches.map(condition), raw(` ${filter.tree} `))})`;
  const { operator, modifier, value } = filter;
  const [left, by] = [columnOf(filter.column), raw(OPERATORS.get(operator) ?? '')];
  if (operator === 'is') return sql`${left} is ${raw(value.replace('_', ' '))}`;
  if (operator === 'in') return sql`${left} ${by}(${value})`;
  const language = modifier ? sql`${modifier}::text::regconfig, ` : sql``;
  if (FULL_TEXT.test(operator))
    return sql`to_tsvector(${language}${left}) @@ ${by}(${language}${value})`;
  return modifier ? sql`${left} ${by} ${raw(modifier)}(${value})` : sql`${left} ${by} ${value}`;
}

/** The rows after the one with the given values, in the given order (keyset pagination). */
function keyset(key: string, order: Order[], values: (string | null)[]): Sql {
  return order.reduceRight((rest, { column, descending, nullsFirst }, at) => {
    const [left, value = null] = [columnOf(column), values[at]];
    const further = sql`${left} ${raw(descending ? '<' : '>')} ${value}`;
    const past = nullsFirst || column === key ? further : sql`${further} or ${left} is null`;
    const [beyond, same] =
      value === null
        ? [nullsFirst ? sql`${left} is not null` : sql`false`, sql`${left} is null`]
        : [past, sql`${left} = ${value}`];
    return sql`(${beyond} or (${same} and ${rest}))`;
  }, sql`false`);
}

/** The cursor of a page whose last row has these values. */
export function cursorOf({ order }: Query, row: Record<string, unknown>): string {
  const values = order.map(({ column }) => toTextOrNull(row[column]));
  return Buffer.from(JSON.stringify(values)).toString('base64url');
}
