/* The inputs of a step in which every row computes one token: a few numbers per row, between two runs of the model. */

/* Row numbers rows [R], of them num_computed and last_ids, which lie by row number, as tables [.., width] of each group do;
 * out: token_ids, positions, row_numbers, slots of each group [R], seq_lens [R]. The tokens count as computed afterwards. */
void pack_decodes(const long *rows, long R, long *num_computed, const long *last_ids, const int *const *tables, long groups,
                  long width, long block_size, long *token_ids, long *positions, long *row_numbers, long *const *slots,
                  int *seq_lens) {
    for (long i = 0; i < R; i++) {
        long row = rows[i], position = num_computed[row]++;
        token_ids[i] = last_ids[row];
        positions[i] = position;
        row_numbers[i] = row;
        seq_lens[i] = (int)position + 1;
        for (long g = 0; g < groups; g++)
            slots[g][i] = (long)tables[g][row * width + position / block_size] * block_size + position % block_size;
    }
}
