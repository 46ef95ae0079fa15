/** Two tables, and an endpoint that joins them: npm start -- examples/shop.ts */
import type { Endpoints } from '../app.ts';
import { boolean, integer, now, number, resource, text, timestamp, uuid } from '../lib/columns.ts';
import type { C } from '../lib/http.ts';
import { documented } from '../lib/openapi.ts';
import { sql } from '../lib/sql.ts';

const products = resource({
  path: 'products',
  table: 'products',
  key: 'uuid',
  columns: {
    name: text(100, { csv: 'Name', example: 'Tea' }),
    price: number(0, 1_000_000, { csv: 'Price', example: 4.5 }),
  },
});

const orders = resource({
  path: 'orders',
  table: 'shop_orders',
  key: 'uuid',
  columns: {
    product: uuid(),
    quantity: integer(1, 1000, { example: 2 }),
    ordered: timestamp({ default: now }),
    fulfilled: boolean({ default: false, example: false }),
  },
});

export default [products, orders];

/** How many pieces of each product are still to be sent; `documented` lists it in /docs. */
export const endpoints: Endpoints = (app, { pool, secured }) => {
  const example = [{ product: 'Tea', quantity: 2 }];
  const open = documented(
    { summary: 'Count open orders', tag: 'orders', example, secured: true },
    async (c: C) => {
      const rows = await pool.json(
        sql`select name as product, sum(quantity) as quantity
          from products join shop_orders on product = products.uuid
          where not fulfilled group by products.uuid order by quantity desc, name`,
        c.var.call,
      );
      return c.json(rows);
    },
  );
  app.get('/orders/open', secured, open);
};
