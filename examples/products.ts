/** A table that exists: DATABASE_URL=postgres://… npm start -- examples/products.ts */
import {
  arrayOf,
  identity,
  jsonb,
  now,
  numeric,
  resource,
  text,
  timestamp,
} from '../lib/columns.ts';

export default resource({
  path: 'products',
  table: 'products',
  key: 'id',
  columns: {
    id: identity(),
    sku: text({ unique: true, example: 'tea-1' }),
    price: numeric(10, 2, { nullable: true, example: 4.5 }),
    tags: arrayOf(text({ example: 'green' }), { nullable: true }),
    attributes: jsonb(undefined, { color: 'red' }, { nullable: true }),
    created: timestamp({ zone: false, nullable: true, default: now }),
  },
});
