// A hash table from 64-bit keys to indices.

#pragma once

#include <algorithm>

#include "threads.hpp"

namespace hdcrf {

inline uint64_t mixed(uint64_t key) {
    key ^= key >> 32;
    key *= 0x9E3779B97F4A7C15u;
    return key ^ (key >> 29);
}

// Open addressing with linear probing, from 64-bit keys to indices; `hash` is mixed(key).
class KeyTable {
public:
    struct Slot {
        uint64_t key;
        int32_t index;  // -1: free
    };

    explicit KeyTable(size_t expected) { allocate(expected); }

    // Inlined, since GCC takes a call for one without effect and drops it.
    [[gnu::always_inline]] void prefetch(uint64_t hash) const { __builtin_prefetch(&slots_[hash & mask_]); }

    // The index of the key, or -1; `same(index)` tells keys apart that are only hashes.
    template <typename Same>
    int32_t find(uint64_t key, uint64_t hash, const Same& same) const {
        for (size_t place = hash & mask_;; place = (place + 1) & mask_) {
            const Slot& slot = slots_[place];
            if (slot.index < 0) return -1;
            if (slot.key == key && same(slot.index)) return slot.index;
        }
    }

    // The index of the key; if it is new, it gets the index `next`.
    template <typename Same>
    int32_t insert(uint64_t key, uint64_t hash, int32_t next, const Same& same) {
        size_t place = hash & mask_;
        for (;; place = (place + 1) & mask_) {
            const Slot& slot = slots_[place];
            if (slot.index < 0) break;
            if (slot.key == key && same(slot.index)) return slot.index;
        }
        slots_[place] = {key, next};
        if (++count_ * 2 > mask_) grow();
        return next;
    }

private:
    void allocate(size_t expected) {
        size_t size = 64;
        while (size < expected * 2) size *= 2;
        slots_.resize(size);
        std::fill_n(slots_.data(), size, Slot{0, -1});
        mask_ = size - 1;
    }

    void grow() {
        const size_t count = mask_ + 1;
        Buffer<Slot> old = std::move(slots_);
        allocate(count);
        for (size_t i = 0; i < count; i++) {
            const Slot& slot = old[i];
            if (slot.index < 0) continue;
            size_t place = mixed(slot.key) & mask_;
            while (slots_[place].index >= 0) place = (place + 1) & mask_;
            slots_[place] = slot;
        }
    }

    Buffer<Slot> slots_;
    size_t mask_ = 0, count_ = 0;
};

}  // namespace hdcrf
