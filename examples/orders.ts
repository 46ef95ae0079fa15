/**
 * Orders of a shop, each its caller's own:
 * JWT_SECRET=… JWT_AUDIENCE=shop-example npm start -- examples/orders.ts
 */
import { z } from 'zod';
import { boolean, jsonb, now, owner, resource, timestamp } from '../lib/columns.ts';

const Product = z.strictObject({ uuid: z.uuid(), quantity: z.int().min(1).max(1_000_000) });
const USER = /^user:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const ada = '0192f0c1-2f3a-7bcd-8123-000000000001';

export default resource({
  path: 'orders',
  table: 'orders',
  key: 'uuid',
  columns: {
    user: owner(USER, { example: `user:${ada}` }),
    products: jsonb(z.array(Product).min(1), [{ uuid: ada, quantity: 2 }]),
    orderDate: timestamp({ default: now }),
    fulfilled: boolean({ default: false, example: false }),
  },
});
