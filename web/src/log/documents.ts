import { graphql } from "../gql";

/** Where the log ends now. Also tells whether the server can be reached and knows us. */
export const HeadDocument = graphql(`
  query Head {
    head
  }
`);

/** The page's clock: what it shows is the read models at `cursor`, so of the events only their number is asked for. */
export const EventsDocument = graphql(`
  subscription Events($after: Cursor) {
    events(after: $after) {
      cursor
      events {
        position
      }
    }
  }
`);
